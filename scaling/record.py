"""The run record: what a training run leaves for analysis. Schema version 1. Standard library only.

`run.json` holds identity and results and is rewritten atomically; `metrics.jsonl` holds one JSON object per optimizer step and
one per evaluation. Loss is nats per token.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from common.files import write_atomically
from common.plain import without_nan

SCHEMA = 1
_NUMBERS = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "step_seconds", "memory_bytes")
STATUSES = ("running", "finished", "preempted", "failed")


@dataclasses.dataclass(kw_only=True)
class RunRecord:
    """`run.json`. Results are None until they are known; `bits` None means full precision."""

    schema: int = SCHEMA
    name: str
    status: Literal["running", "finished", "preempted", "failed"]
    seed: int
    parameters: int
    """all of them"""
    parameters_non_embedding: int
    """without input embedding and output head"""
    tokens: int
    """trained on so far"""
    flops: float
    """6 x parameters x tokens"""
    tokens_per_parameter: float
    loss: float | None = None
    """final validation loss, nats per token"""
    bits_per_byte: float | None = None
    losses: dict[str, float] = dataclasses.field(default_factory=dict)
    """validation loss per set"""
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    """1 - accuracy per downstream task"""
    bits: float | None = None
    qat_tokens: int = 0
    fp_tokens: int = 0
    quantizer: str | None = None
    peak_learning_rate: float
    schedule: str
    batch_tokens: int
    sequence: int
    model: dict[str, Any]
    layout: dict[str, int]
    engine: str
    precision: str
    tokens_per_second: float | None = None
    """over all ranks, the median step after the first two"""
    mfu: float | None = None
    """model FLOPs (full attention) over the devices' dense peak"""
    mfu_causal: float | None = None
    """the same with the attention term halved"""
    peak_memory_bytes: int | None = None
    """largest rank's peak of live tensor bytes; None where it was not measured"""
    device: str
    world_size: int
    wall_seconds: float = 0.0
    resumed_from: str | None = None
    """the checkpoint the last process went on from"""
    config_hash: str
    git_commit: str | None
    versions: dict[str, str]
    started: str
    """ISO 8601, UTC"""
    ended: str | None = None
    skipped_steps: int = 0
    """steps whose gradient was not finite and that changed nothing"""
    skipped_samples: list[list[int]] = dataclasses.field(default_factory=list)
    """ranges of sample numbers [first, one after the last] that were left out after a rewind"""
    checkpoints: dict[str, float] = dataclasses.field(default_factory=dict)
    """of the last process: saved, bytes of the last one, stall_seconds of the loop, cpu_seconds in the background"""
    trunk: str | None = None
    """the checkpoint of another run that this one branched off; `tokens` includes that run's up to the branch"""
    context_method: str | None = None
    """how the ranks that share a sequence exchange it; null where none do"""
    corpus: str | None = None
    """content hash of text, tokenizer and split (the folder of the tokens): losses on two of them are not comparable"""
    tokenizer: str | None = None
    """SHA-256 of the tokenizer"""
    predicted: dict[str, Any] = dataclasses.field(default_factory=dict)
    """by the layout planner, before the run: peak_memory_bytes, tokens_per_second, fits"""
    bit_widths: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    """of every matrix with learned bit widths, how many of its blocks have which, in quarters of a bit"""
    standard_errors: dict[str, float] = dataclasses.field(default_factory=dict)
    """of `errors`, by task: sqrt(p (1 - p) / (n - 1)) of n questions"""
    set_bits_per_byte: dict[str, float] = dataclasses.field(default_factory=dict)
    """of every set in `losses`"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepLine:
    """A `metrics.jsonl` line for one optimizer step."""

    step: int
    tokens: int
    """after the step"""
    loss: float
    learning_rate: float
    gradient_norm: float
    phase: str
    tokens_per_second: float
    step_seconds: float
    memory_bytes: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationLine:
    """A `metrics.jsonl` line for one evaluation. It carries no learning rate, by which the two kinds are distinguished."""

    step: int
    tokens: int
    validation: dict[str, float]
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    bits_per_byte: dict[str, float] = dataclasses.field(default_factory=dict)
    """of every set in `validation`"""


def write_record(folder: Path, record: RunRecord) -> None:
    """Write `run.json` so that a reader sees the old one or the new one, whole."""
    write_atomically(folder / "run.json", json.dumps(without_nan(dataclasses.asdict(record)), indent=2) + "\n")


def read_record(folder: Path) -> RunRecord:
    """Read `<folder>/run.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a run record of this schema; the message names the file and what is wrong.
    """
    path = folder / "run.json"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a run record of schema {SCHEMA}")
    names = {field.name for field in dataclasses.fields(RunRecord)}
    try:
        record = RunRecord(**{key: value for key, value in plain.items() if key in names})
    except TypeError as error:
        raise ValueError(f"{path} lacks a key of the run record: {error}") from None
    if record.status not in STATUSES:
        raise ValueError(f"{path}: status {record.status!r} is none of {', '.join(STATUSES)}")
    return record


def line_text(line: StepLine | EvaluationLine) -> str:
    """A line of `metrics.jsonl`, its end included."""
    return json.dumps(without_nan(dataclasses.asdict(line))) + "\n"


def read_metrics(folder: Path, unreadable: list[str] | None = None) -> Iterator[StepLine | EvaluationLine]:
    """The lines of `<folder>/metrics.jsonl`, in order. A last line cut off by a crash is left out.

    With `unreadable`, a damaged line is left out too, and what is wrong is appended to it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a line is damaged, and `unreadable` is None.
    """
    with open(folder / "metrics.jsonl", "rb") as stream:
        yield from read_lines(stream, stream.name, unreadable)


def read_lines(texts: Iterable[bytes], name: str, unreadable: list[str] | None = None) -> Iterator[StepLine | EvaluationLine]:
    """The same for lines of a file of that `name`, each with its end."""
    for number, text in enumerate(texts, start=1):
        if not text.endswith(b"\n"):
            return
        try:
            yield _line(text)
        except (ValueError, TypeError) as error:
            problem = f"{name}:{number} is not a metrics line: {error}"
            if unreadable is None:
                raise ValueError(problem) from None
            unreadable.append(problem)


def _line(text: bytes) -> StepLine | EvaluationLine:
    plain = json.loads(text)
    if not isinstance(plain, dict):
        raise TypeError("not a JSON object")
    kind = StepLine if "learning_rate" in plain else EvaluationLine
    names = {field.name for field in dataclasses.fields(kind)}
    line = kind(**{key: value for key, value in plain.items() if key in names})
    for name, value in vars(line).items():
        if name in ("step", "tokens") and type(value) is not int:
            raise TypeError(f"{name} is {value!r}")
        if name in _NUMBERS and not (value is None or type(value) in (int, float)):
            raise TypeError(f"{name} is {value!r}")
    if isinstance(line, EvaluationLine) and not isinstance(line.validation, dict):
        raise TypeError(f"validation is {line.validation!r}")
    return line
