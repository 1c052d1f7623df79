"""Which run may go on from another's checkpoint, and what the two may differ in."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from train.checkpoint.manifest import BrokenCheckpointError, Manifest
from train.config import Config
from train.config.resolve.quantization import low_precision_phase
from train.config.sections.quantization import QUANTIZER_KEYS
from train.folder.reading import load_run_config, named_checkpoint

_MAX_DIFFERENCES = 3  # a message is one to five lines
# A run that goes on from another's weights has the same tensors in the same function, but where random weights come from.
_INITIAL_KEYS = ("initial_weights", "init_std")
_FUNCTION_KEYS_OF_THE_OPTIMIZER = ("name", "mup", "mup_base_width")


def require_same_run(config: Config, before: Config, run: Path, checkpoint: Path | None) -> bool:
    """Refuse to go on with a run of another identity, unless `run.resume_force` says so. Returns whether it does.

    `run` is the folder, `checkpoint` the one that the user named in it, if any.

    Raises:
        UserError: the identities differ; the message has the first few keys.
    """
    lines = differences(before.identity(), config.identity())
    if lines and not config.run.resume_force:
        if checkpoint is None:
            advice = "choose another run.name, or delete it (run.resume_force=true goes on all the same)"
            first = f"{run} holds another run: {advice}. It differs in"
        else:
            first = f"{checkpoint} is of a run that differs (run.resume_force=true goes on all the same) in"
        raise UserError(_list(first, lines))
    return bool(lines)


def changes_from_trunk(config: Config, trunk: Path) -> list[str]:
    """A line for every key that differs from the run that `run.trunk` is a checkpoint of.

    The two may differ in much, but the trunk's tensors and its tokens must be usable.

    Raises:
        UserError: they are not.
    """
    folder = named_checkpoint("run.trunk", str(trunk))
    before = load_run_config(folder.parent.parent)
    function = tuple(key for key in config.as_dict()["model"] if key not in _INITIAL_KEYS)
    for section, keys in (("model", function), ("optimizer", _FUNCTION_KEYS_OF_THE_OPTIMIZER), ("tokenizer", ())):
        old, new = (_section(of, section, keys) for of in (before, config))
        if lines := differences(old, new, section):
            raise UserError(_list(f"run.trunk={folder} is of a run that differs in", lines))
    tokens = require_same_precision("run.trunk", folder, before, config)
    if tokens >= config.total_tokens:
        raise UserError(
            f"run.trunk={folder} has {tokens} tokens, this run is to have {config.total_tokens}: raise train.tokens"
        )
    lines = differences(before.identity(), config.identity(), common=True)
    return [f"unlike its trunk: {line}" for line in lines if not line.startswith("run.trunk")]


def require_same_precision(key: str, folder: Path, before: Config, config: Config) -> int:
    """Refuse a checkpoint whose weights are of another precision than this run's at its tokens. Returns those tokens.

    `key` named the checkpoint `folder`, of a run with the configuration `before`.

    Raises:
        UserError: one of them is in its low-precision phase and the other is not, or their quantizers differ.
    """
    try:
        tokens = Manifest.read(folder).progress.tokens
    except BrokenCheckpointError as error:
        raise UserError(f"{key}={folder} is not what was saved: {error}") from None
    theirs, ours = low_precision_phase(before), low_precision_phase(config)
    quantized = theirs is not None and theirs.holds(tokens)
    if quantized != (ours is not None and ours.holds(tokens)):
        its, this = ("is quantized", "is not") if quantized else ("is not quantized", "is")
        begin = f", which begins at {ours.start} tokens ({ours.why})" if ours is not None else ""
        raise UserError(
            f"{key}={folder} {its} at its {tokens} tokens, this run {this} by then{begin}: choose a checkpoint before "
            f"both quantized phases, or another quant.start"
        )
    old, new = (_section(of, "quant", QUANTIZER_KEYS) for of in (before, config))
    if quantized and (lines := differences(old, new, "quant")):
        raise UserError(_list(f"{key}={folder} is quantized in another way: it differs in", lines))
    if quantized and theirs is not None and ours is not None and theirs.start != ours.start:
        raise UserError(
            f"{key}={folder} is quantized from {theirs.start} tokens on, this run would be from {ours.start} ({ours.why}): "
            f"type quant.start={theirs.start / config.total_tokens!r}"
        )
    return tokens


def differences(old: Any, new: Any, key: str = "", *, common: bool = False) -> list[str]:
    """A line for every key that differs; with `common` only for those that both have: another option has other keys."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [name for name in {**old, **new} if not common or (name in old and name in new)]
        return [
            line
            for name in names
            for line in differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name), common=common)
        ]
    return [] if old == new else [f"{key}: was {_word(old)}, is {_word(new)}"]


def _list(first: str, lines: Sequence[str]) -> str:
    return "\n  ".join([first, *_shown(lines)])


def _shown(lines: Sequence[str]) -> Iterator[str]:
    yield from lines[:_MAX_DIFFERENCES]
    if (more := len(lines) - _MAX_DIFFERENCES) > 0:
        yield f"and {more} more keys"


def _section(config: Config, section: str, keys: Sequence[str]) -> dict[str, Any]:
    """A section, or only those keys of it."""
    plain: dict[str, Any] = config.as_dict()[section]
    return {key: value for key, value in plain.items() if key in keys} if keys else plain


def _word(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # on one line, whatever is in it
