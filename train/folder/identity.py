"""Whether a run may continue from a checkpoint, and how the two runs differ."""

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
# Keys of the model that may differ from the trunk's: they only matter for initial weights.
_INITIAL_KEYS = ("initial_weights", "init_std")
_FUNCTION_KEYS_OF_THE_OPTIMIZER = ("name", "mup", "mup_base_width")


def require_same_run(config: Config, before: Config, run: Path, checkpoint: Path | None) -> bool:
    """Refuse to continue a run with another identity, unless `run.resume_force` is set. Returns whether the identities differ.

    `run` is its folder, `before` its configuration, `checkpoint` the checkpoint in it that the user named, if any.

    Raises:
        UserError: the identities differ; the message has the first few keys.
    """
    lines = _changes(before, config)
    if lines and not config.run.resume_force:
        if checkpoint is None:
            advice = "choose another run.name, or delete it (run.resume_force=true resumes it anyway)"
            first = f"{run} holds another run: {advice}. It differs in"
        else:
            first = f"{checkpoint} is of a run that differs (run.resume_force=true resumes from it anyway) in"
        raise UserError(_list(first, lines))
    return bool(lines)


def changes_from_trunk(config: Config, trunk: Path) -> list[str]:
    """A line for every key that differs from the run of the checkpoint `trunk`.

    Most keys may differ, but this run must be able to use the trunk's tensors, and be longer.

    Raises:
        UserError: it cannot, or is not.
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
    lines = _changes(before, config, common=True)
    return [f"unlike its trunk: {line}" for line in lines if not line.startswith("run.trunk")]


def _changes(before: Config, config: Config, *, common: bool = False) -> list[str]:
    """A line for every key of the identity that differs. The length is said in tokens unless steps were asked for."""
    lines = differences(before.identity(), config.identity(), common=common)
    if config.train.steps is not None:
        return lines
    length = f"its length: was {before.total_tokens:,} tokens, is {config.total_tokens:,}"
    same = before.total_tokens == config.total_tokens
    others = [line for line in lines if not line.startswith("train.steps:")]
    return others if len(others) == len(lines) or same else [*others, length]


def require_same_precision(key: str, folder: Path, before: Config, config: Config) -> int:
    """Refuse a checkpoint whose weights have another precision than this run has at the same tokens. Returns those tokens.

    The user named the checkpoint `folder` under `key`; `before` is the configuration of its run.

    Raises:
        UserError: one run is in its low-precision phase and the other is not, or their quantizers differ.
    """
    try:
        tokens = Manifest.read(folder).progress.tokens
    except BrokenCheckpointError as error:
        raise UserError(f"{key}={folder} is not what was saved: {error}") from None
    old_phase, new_phase = low_precision_phase(before), low_precision_phase(config)
    quantized = old_phase is not None and old_phase.holds(tokens)
    if quantized != (new_phase is not None and new_phase.holds(tokens)):
        old_state, new_state = ("is quantized", "is not") if quantized else ("is not quantized", "is")
        start = f" (its phase begins at {new_phase.start}: {new_phase.why})" if new_phase is not None else ""
        raise UserError(
            f"{key}={folder} {old_state} at its {tokens} tokens, this run {new_state} by then{start}: choose a checkpoint "
            f"before both quantized phases, or another quant.start"
        )
    old, new = (_section(of, "quant", QUANTIZER_KEYS) for of in (before, config))
    if quantized and (lines := differences(old, new, "quant")):
        raise UserError(_list(f"{key}={folder} is quantized in another way: it differs in", lines))
    if quantized and old_phase is not None and new_phase is not None and old_phase.start != new_phase.start:
        raise UserError(
            f"{key}={folder} is quantized from {old_phase.start} tokens on, this run would be from {new_phase.start} "
            f"({new_phase.why}): type quant.start={old_phase.start / config.total_tokens!r}"
        )
    return tokens


def differences(old: Any, new: Any, key: str = "", *, common: bool = False) -> list[str]:
    """A line for every key that differs. With `common`, only for keys that both have: options of a group differ in keys."""
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
    """The given keys of a section; all of them if `keys` is empty."""
    plain: dict[str, Any] = config.as_dict()[section]
    return {key: value for key, value in plain.items() if key in keys} if keys else plain


def _word(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # always one line
