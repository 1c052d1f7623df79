"""A run: its identity and length, and what it does besides its steps."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from train.config.sections.types import FREE, STRICT, NonNegativeFloat, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """Identity of the run and its place on disk."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), FREE]
    """a run lies in <run.dir>/<run.name>"""
    dir: Annotated[str, FREE]
    """folder of all runs"""
    seed: Annotated[int, Field(ge=0)]
    """seed of initial weights and data order"""
    resume: Annotated[str, FREE]
    """auto: a finished run of this name shows its table, an unfinished one goes on from its newest checkpoint that verifies;
    never: an existing name is refused; a checkpoint's folder: go on from that one"""
    resume_force: Annotated[bool, FREE]
    """go on even where the configuration has changed what the run computes"""
    trunk: str | None
    """go on from this checkpoint of another run, with another schedule, length or data (see foretrain branch); null: from the
    beginning"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig:
    """The length and the arithmetic of training."""

    tokens: Annotated[PositiveInt | None, FREE]
    """train on this many tokens, rounded up to whole steps (or set train.steps)"""
    steps: PositiveInt | None
    """train for this many optimizer steps (or set train.tokens)"""
    batch_tokens: PositiveInt
    """tokens per optimizer step, over all ranks"""
    batch_warmup_tokens: Annotated[int, Field(ge=0)]
    """over this many tokens at the start the batch grows to batch_tokens; 0: it has its size at once"""
    batch_warmup_start: PositiveInt | None
    """tokens of the first batch, and by how many it grows at a time; null: no batch-size warmup"""
    sequence: PositiveInt
    """tokens per sequence"""
    microbatch: Annotated[PositiveInt, FREE]
    """sequences per rank and forward pass"""
    precision: Literal["fp32", "bf16", "fp64"]
    """bf16: bf16 compute, fp32 parameters and gradient reduction; fp64 is for proving layouts equal"""
    compile: Annotated[bool, FREE]
    """torch.compile, block by block"""
    z_loss: NonNegativeFloat
    """weight of log(Z)^2 per token in the objective"""
    profile: Annotated[bool, FREE]
    """write a trace of three steps, for chrome://tracing or Perfetto, into the run's folder trace/"""
    dry_run: Annotated[bool, FREE]
    """print the parameter table and each rank's share of the model, start nothing"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvalConfig:
    """Validation during the run. There always is one at the end."""

    every_tokens: Annotated[PositiveInt | None, FREE]
    """also evaluate each time this many tokens have been trained on; null: only at the end"""
    tokens: PositiveInt | None
    """evaluate on at most this many validation tokens; null: all"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CheckpointConfig:
    """Checkpoints during the run. There always is one at the end, and one when the run is told to stop."""

    every_tokens: PositiveInt | None
    """save each time this many tokens have been trained on; null: twenty times over the run, at most every twenty steps"""
    keep: PositiveInt
    """keep this many of the newest; besides them always the one where the decay begins, off which others can branch"""
    keep_every: PositiveInt | None
    """also keep every n-th one for good; null: none"""
    timeout_seconds: Annotated[float, Field(gt=0)]
    """give a checkpoint up that is not written after this long; the run goes on without it"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HealthConfig:
    """What is done when a step goes wrong."""

    on_nonfinite: Literal["stop", "skip", "rewind"]
    """loss or gradient not finite. stop the run; skip: leave the weights as they were and go on; rewind: go back to the newest
    checkpoint and leave the data since then out"""
    on_spike: Literal["ignore", "warn", "rewind"]
    """the loss jumps out of line with those before: ignore it, say so, or rewind"""
    spike_window: PositiveInt
    """a loss is compared with the losses of this many steps before"""
    spike_threshold: Annotated[float, Field(gt=0)]
    """how far above their median is out of line, in robust standard deviations (1.4826 x median absolute deviation)"""
    patience: PositiveInt
    """stop after so many rewinds, or after more than so many skipped steps in a row"""
    step_timeout_seconds: Annotated[float, Field(gt=0)] | None
    """when a step takes longer, and ten times longer than those before, say which rank waits for what; null: never"""
