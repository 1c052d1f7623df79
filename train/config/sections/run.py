"""A run: its identity, its length, and what it does between steps."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from parallel.names import DeviceName, KernelName
from train.config.sections.types import FREE, STRICT, NonNegativeFloat, PositiveInt

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """Identity of the run and its place on disk."""

    name: Annotated[str, Field(pattern=NAME), FREE]
    """name of the run; its folder is <run.dir>/<run.name>"""
    dir: Annotated[str, FREE]
    """folder of all runs"""
    seed: Annotated[int, Field(ge=0)]
    """seed of initial weights and data order"""
    resume: Annotated[str, FREE]
    """auto: show the table of a finished run of this name, resume an unfinished one from its newest checkpoint that verifies;
    never: refuse an existing name; restart: begin an unfinished run at step 0, and set its checkpoints aside; a checkpoint's
    folder: resume from that checkpoint"""
    resume_force: Annotated[bool, FREE]
    """resume even if the configuration has changed what the run computes"""
    trunk: str | None
    """start from this checkpoint of another run, with another schedule, length or data (see foretrain branch); null: start from
    the initial weights"""


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
    """tokens at the start of the run over which the batch grows to batch_tokens; 0: no batch-size warmup"""
    batch_warmup_start: PositiveInt | None
    """tokens of the first batch, and of each increment; null: no batch-size warmup"""
    sequence: PositiveInt
    """tokens per sequence"""
    microbatch: Annotated[PositiveInt, FREE]
    """sequences per rank and forward pass; auto: as many as the planner finds fastest among those that fit"""
    device: Annotated[DeviceName, FREE]
    """what computes: cuda is a GPU of NVIDIA's or AMD's for each rank; auto: GPUs where torch finds them, else the CPU"""
    precision: Literal["fp32", "bf16", "fp64"]
    """bf16: bf16 compute, fp32 parameters and gradient reduction; fp64 is for proving that layouts compute the same; auto: bf16
    on a GPU that has it, else fp32"""
    attention: Annotated[KernelName, FREE]
    """fused: torch's kernel for the device, which holds no scores; plain: the formula, on any device and in any precision;
    auto: fused where the device has it"""
    compile: Annotated[bool, FREE]
    """torch.compile, block by block; auto: on GPUs"""
    z_loss: NonNegativeFloat
    """weight of log(Z)^2 per token in the objective"""
    profile: Annotated[bool, FREE]
    """write a trace of three steps, for chrome://tracing or Perfetto, into the run's folder trace/"""
    dry_run: Annotated[bool, FREE]
    """print the parameter table and each rank's share of the model, train nothing"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvalConfig:
    """Validation during the run, and always at its end."""

    every_tokens: Annotated[PositiveInt | None, FREE]
    """also evaluate each time this many tokens have been trained on; null: ten times over the run, at most every twenty
    steps"""
    tokens: PositiveInt | None
    """evaluate on at most this many validation tokens; null: all"""
    sets: Annotated[dict[Annotated[str, Field(pattern=NAME)], list[str]] | None, FREE]
    """{NAME: [globs of files]}: more validation sets, each with a loss of its own; read as data.files are"""
    tasks: Annotated[list[str], FREE]
    """files of questions with choices, JSON lines, and brackets, indentation, imports, names, made from held-out source code;
    their errors (1 - accuracy) go into the record"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CheckpointConfig:
    """Checkpoints during the run, and always at its end and when a signal stops it."""

    every_tokens: PositiveInt | None
    """save each time this many tokens have been trained on; null: twenty times over the run, at most every twenty steps"""
    keep: PositiveInt
    """keep this many of the newest, and always the one where a decay begins, from which others can branch"""
    keep_every: PositiveInt | None
    """also keep every n-th one forever; null: none"""
    timeout_seconds: Annotated[float, Field(gt=0)]
    """give up a checkpoint that is not written after this long; the run continues without it"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HealthConfig:
    """What to do when a step goes wrong."""

    on_nonfinite: Literal["stop", "skip", "rewind"]
    """if loss or gradient is not finite. stop: end the run; skip: leave the weights unchanged and continue; rewind: return to
    the newest checkpoint and skip the data since then"""
    on_spike: Literal["ignore", "warn", "rewind"]
    """if the loss jumps far above the losses before: ignore it, warn, or rewind"""
    spike_window: PositiveInt
    """number of previous steps whose losses a loss is compared with"""
    spike_threshold: Annotated[float, Field(gt=0)]
    """how far above their median a spike is, in robust standard deviations (1.4826 x median absolute deviation)"""
    patience: PositiveInt
    """stop after this many rewinds, or after more than this many skipped steps in a row"""
    step_timeout_seconds: Annotated[float, Field(gt=0)] | None
    """if a step takes longer, and ten times longer than any before, report which rank waits for what; null: never"""
