"""`foretrain branch RUN [--at TOKENS] [--decay-tokens D] [overrides]`: end a run differently, as a new run from its trunk.

The branch equals a run planned with that end from the start, but trains only the tokens after the trunk's checkpoint. The end
is a decay; with `quant=qat`, or another method of low precision, among the overrides it has that too.
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import UserError
from common.output import go_on_without_output
from common.words import hydra_word
from parallel.environment import leave
from train.checkpoint.manifest import BrokenCheckpointError, Manifest, newest_first
from train.command.frame import run_command
from train.command.train import main as train
from train.config import Config, load_config, require, schedule_of
from train.config.compose import section_defaults
from train.config.resolve.quantization import low_precision_phase
from train.folder.reading import load_run_config, path_of

_MOST_TOKENS = 10**15  # more text than exists

Start = Callable[[list[str]], int]
"""Trains with these overrides. Returns the exit code."""


def branch(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="the trunk: a run's folder, such as runs/demo")],
    at: Annotated[
        str | None,
        typer.Option(
            help="tokens of RUN's checkpoint to start from, where the decay begins; with quant=... by default the last one "
            "before the low-precision phase and every decay"
        ),
    ] = None,
    decay_tokens: Annotated[
        str | None,
        typer.Option(help="tokens after --at, rounded up to whole steps; with quant=... by default the rest of RUN's"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="other changes: schedule.decay_shape=one_minus_sqrt run.name=mine ..."),
    ] = None,
) -> None:
    """Start a decay, or low precision (quant=qat ...), from a checkpoint of RUN's trunk. One trunk serves several budgets and
    widths."""
    begin, length = (text and _tokens(option, text) for option, text in (("--at", at), ("--decay-tokens", decay_tokens)))
    if any(word.lstrip("+").startswith("quant=") and not word.endswith("=none") for word in overrides or []):
        words = quantized_words(run, begin or None, length or None, overrides or [])
    elif begin and length:
        words = branch_words(run, begin, length, overrides or [])
    else:
        missing = [option for option, given in (("--at", begin), ("--decay-tokens", length)) if not given]
        if any(word.lstrip("+").startswith("quant.") for word in overrides or []):
            raise UserError(f"{' and '.join(missing)} must be given, or quant=qat before the keys of quant")
        raise UserError(f"{' and '.join(missing)} must be given: only a branch with quant=qat has defaults for them")
    raise typer.Exit(context.obj(words))


def branch_words(run: Path, at: int, decay_tokens: int, overrides: list[str]) -> list[str]:
    """The overrides that train the branch, the user's last.

    Raises:
        UserError: `run` is not a run, has no checkpoint at `at` tokens, or is no longer a trunk there.
    """
    trunk = load_run_config(run)
    trunk_end = _require_trunk(run, trunk, at)
    for key in ("train.tokens", "train.steps", "schedule.decay_fraction"):
        if any(word.lstrip("+").startswith(f"{key}=") for word in overrides):
            raise UserError(f"{key} follows from --at and --decay-tokens, which say when a branch decays: leave it out")
    total = trunk.batches.tokens(trunk.batches.steps(at + decay_tokens))
    plain = _planned(trunk, f"{trunk.run.name}-at{at}-decay{total - at}", total, overrides)
    plain["schedule"]["decay_fraction"] = (total - at) / total
    if (phase := low_precision_phase(trunk)) is not None and phase.holds(at):
        plain["quant"]["start"] = phase.start / total  # the same tokens as in the trunk, as a share of the branch's
    words = words_of(plain, overrides)
    folder = path_of(load_config([*words, *overrides]))
    return [*words, f"run.trunk={hydra_word(_checkpoint(run, at, folder, trunk_end))}", *overrides]


def quantized_words(run: Path, at: int | None, tokens: int | None, overrides: list[str]) -> list[str]:
    """The overrides that train a branch with a method of low precision (`quant=qat`), the user's last.

    The branch has the trunk's length, or ends `tokens` after `at`. It starts from a checkpoint up to which both runs are the
    same, that is before the method's phase and before any decay of either: the newest one, or the one at `at`.

    Raises:
        UserError: `run` is not a run, or has no such checkpoint.
    """
    trunk = load_run_config(run)
    total = trunk.total_tokens
    if tokens is not None:
        if at is None:
            raise UserError("--decay-tokens counts from --at: give both, or train.tokens=... for the whole length")
        total = trunk.batches.tokens(trunk.batches.steps(at + tokens))
    method = load_config([word for word in overrides if word.lstrip("+").startswith(("quant=", "quant."))]).low_precision
    assert method is not None
    plain = _planned(trunk, f"{trunk.run.name}-{method.label}", total, overrides)
    words = words_of(plain, overrides)
    branch = load_config([*words, *overrides])
    require(branch, world_size=branch.parallel.layout.world_size, overrides=overrides)
    phase = low_precision_phase(branch)
    assert phase is not None
    decays = [decay for config in (trunk, branch) for decay in schedule_of(config).decays]
    trunk_phase = low_precision_phase(trunk)
    splits = {phase.start: phase.why, **{begin: "a decay begins" for begin, _ in decays}}
    if trunk_phase is not None:
        splits |= {trunk_phase.start: f"the trunk's own phase begins then: {trunk_phase.why}"}
    trunk_end = min(splits)
    if at is None:
        at = _newest(run, trunk_end, path_of(branch))
    elif at > trunk_end:
        raise UserError(
            f"--at {at}: the trunk and this branch are one run up to {trunk_end} tokens only ({splits[trunk_end]}): "
            f"leave --at out"
        )
    return [*words, f"run.trunk={hydra_word(_checkpoint(run, at, path_of(branch)))}", *overrides]


def _planned(trunk: Config, name: str, total: int, overrides: list[str]) -> dict[str, Any]:
    """The trunk's configuration with another name and length, and with a final decay if it had none.

    Raises:
        UserError: the overrides choose another schedule.
    """
    if any(word.lstrip("+").startswith("schedule=") for word in overrides):
        raise UserError("a branch decays off its trunk's own schedule: set keys of it, such as schedule.decay_shape=cosine")
    plain = trunk.as_dict()
    plain["run"] |= {"name": name, "trunk": None, "resume": "auto", "resume_force": False}
    plain["train"] |= {"tokens": total, "steps": None}
    if trunk.schedule.name != "power":
        shared = {key: plain["schedule"][key] for key in ("peak", "warmup_tokens", "warmup_shape", "warmup_start")}
        default = load_config(["schedule=wsd"]).as_dict()["schedule"]
        plain["schedule"] = {key: plain["schedule"].get(key, default[key]) for key in default} | {"name": "wsd"} | shared
    return plain


def words_of(plain: dict[str, Any], overrides: Sequence[str] = ()) -> list[str]:
    """Overrides that give the configuration `plain`, without the groups whose option `overrides` choose."""
    chosen = {word.lstrip("+").partition("=")[0] for word in overrides}
    sections = {name: section for name, section in plain.items() if name not in chosen}
    words = [f"{name}={section['name']}" for name, section in sections.items() if name != "run" and "name" in section]
    for name, section in sections.items():
        # The defaults before they are resolved, so that a value which the files derive from others is written out too.
        defaults = section_defaults(name, section["name"] if name != "run" and "name" in section else None)
        words += [
            f"{name}.{key}={hydra_word(value)}" for key, value in section.items() if key != "name" and defaults[key] != value
        ]
    if "run" in plain:
        words.append(f"run.name={hydra_word(plain['run']['name'])}")
    return words


def _tokens(option: str, text: str) -> int:
    try:
        number = float(text.replace("_", "").replace(",", ""))
        if 0 < number <= _MOST_TOKENS and number == int(number):
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise UserError(
        f"{option} {text}: a number of tokens is a whole number from 1 to {_MOST_TOKENS:.0e}, such as 1200000 or 1.2e6"
    )


def _require_trunk(run: Path, config: Config, at: int) -> float:
    """The number of tokens up to which a run is a trunk.

    Raises:
        UserError: `at` is more.
    """
    schedule = schedule_of(config)
    decays = schedule.decays
    if decays and decays[0][0] <= schedule.warmup_tokens:
        raise UserError(
            f"{run} ({config.schedule.name}) decays from its warmup on and has no trunk: train one, schedule=constant"
        )
    if decays and at > decays[0][0]:
        raise UserError(
            f"--at {at}: {run} ({config.schedule.name}) begins to decay at {decays[0][0]} tokens and is no trunk after that: "
            f"choose a checkpoint before"
        )
    return decays[0][0] if decays else math.inf


def _checkpoint(run: Path, at: int, branch: Path, trunk_end: float = math.inf) -> str:
    """The folder of the trunk's checkpoint at `at` tokens. `run` is a trunk up to `trunk_end` tokens."""
    if recorded := _recorded_checkpoint(run, branch):
        return recorded  # the trunk may have removed it since; the branch resumes from its own checkpoints
    checkpoints = _checkpoints(run)
    if at in checkpoints:
        return str(checkpoints[at].resolve())  # the same from every working directory
    before = (tokens for tokens in checkpoints if tokens <= trunk_end)
    nearest = sorted(sorted(before, key=lambda tokens: abs(tokens - at))[:3])
    hint = f"the nearest are at {', '.join(map(str, nearest))}" if nearest else "it has none before its decay"
    if (parent := load_run_config(run).run.trunk) is not None:
        hint += f" (it is a branch itself, of {Path(parent).parent.parent})"
    raise UserError(
        f"--at {at}: no checkpoint of {run} holds these tokens; {hint}\n"
        f"(a run keeps its newest checkpoint.keep, every checkpoint.keep_every-th, and the one where its decay begins)"
    )


def _recorded_checkpoint(run: Path, branch: Path) -> str | None:
    """The checkpoint of `run` that an existing branch started from; None if the branch is new or of another run."""
    trunk = load_run_config(branch).run.trunk if (branch / "config.yaml").exists() else None
    return trunk if trunk and Path(trunk).expanduser().parent.parent.resolve() == run.expanduser().resolve() else None


def _newest(run: Path, trunk_end: int, branch: Path) -> int:
    """Tokens of the trunk's newest checkpoint up to `trunk_end` tokens."""
    if recorded := _recorded_checkpoint(run, branch):
        try:
            return Manifest.read(Path(recorded).expanduser()).progress.tokens
        except BrokenCheckpointError:
            return trunk_end  # no longer needed once the branch has checkpoints of its own
    checkpoints = _checkpoints(run)
    before = [tokens for tokens in checkpoints if tokens <= trunk_end]
    if not before:
        others = ", ".join(map(str, sorted(checkpoints)[:3])) or "none"
        raise UserError(
            f"{run} has no checkpoint up to {trunk_end} tokens, after which this branch differs from it; it has {others}\n"
            f"(a run keeps its newest checkpoint.keep, every checkpoint.keep_every-th, and the one where its decay begins; a "
            f"smaller quantized share, quant.start=..., begins later)"
        )
    return max(before)


def _checkpoints(run: Path) -> dict[int, Path]:
    """The completed checkpoints of a run by their tokens."""
    checkpoints: dict[int, Path] = {}
    for folder in newest_first(run / "checkpoints"):
        try:
            checkpoints[Manifest.read(folder).progress.tokens] = folder
        except BrokenCheckpointError:
            continue
    return checkpoints


def main(arguments: list[str], start: Start | None = None) -> int:
    """Parse the command line and train. Returns the exit code."""
    return run_command(branch, arguments, start=start or train)


if __name__ == "__main__":
    go_on_without_output()
    leave(main(sys.argv[1:]))
