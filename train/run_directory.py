"""The folder of one run: who may write into it, what an existing one means, and what is written.

One process writes: rank 0, which holds an exclusive lock as long as it lives.
"""

import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import yaml

from common.errors import UserError, WorkFailed
from common.files import write_atomically
from scaling.record import (
    EvaluationLine,
    RunRecord,
    StepLine,
    line_text,
    read_metrics,
    read_record,
    write_record,
)
from train.checkpoint.manifest import NAME as MANIFEST
from train.checkpoint.manifest import BrokenCheckpointError, Manifest, newest_first, remove, step_of
from train.config import Config, parse_config
from train.config.quantization import qat_phase

log = logging.getLogger("foretrain")

LOCK_WAIT_SECONDS = 5.0
_MAX_DIFFERENCES = 3  # a message is one to five lines
# A run that goes on from another's weights must have the same tensors in the same function: what it may differ in, or may not.
_QUANTIZER = ("bits", "group", "embedding_bits", "activation_bits", "scale_floor")
_START = ("initial_weights", "init_std")
_MUP = ("name", "mup", "mup_base_width")


def now() -> str:
    """The time as records have it: ISO 8601, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class MetricsFile:
    """`metrics.jsonl`, open for appending. A disk that is full for a while loses no line: they are written once it has room."""

    MOST_UNWRITTEN = 10_000

    def __init__(self, path: Path, step: int) -> None:
        """Drop the lines of steps behind `step` and open the file."""
        self.path = path
        self._lock = threading.Lock()  # checkpoints make the file durable from their own thread
        self._unwritten: list[str] = []
        kept = _lines_until(path, step)
        write_atomically(path, "".join(kept))
        self._stream = open(path, "ab", buffering=0)
        self._size = path.stat().st_size

    def append(self, line: StepLine | EvaluationLine) -> None:
        """Write a line, or keep it for later.

        Raises:
            WorkFailed: the disk has not taken a line for too long.
        """
        with self._lock:
            self._unwritten.append(line_text(line))
            try:
                self._write()
            except OSError as error:
                if len(self._unwritten) == 1:
                    said = "step %d: %s cannot be written (%s); its lines are kept until it can"
                    log.warning(said, line.step, self.path, error)
                if len(self._unwritten) > self.MOST_UNWRITTEN:
                    raise WorkFailed(f"{self.path} could not be written for {self.MOST_UNWRITTEN} lines: {error}") from error

    def flush(self) -> None:
        """Write what is not written yet.

        Raises:
            OSError: the disk refused; nothing half-written is left.
        """
        with self._lock:
            self._write()

    def _write(self) -> None:
        data = "".join(self._unwritten).encode()
        try:
            written = self._stream.write(data)
            if written != len(data):
                raise OSError(errno.ENOSPC, "no space left")
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._stream.fileno(), self._size)
            raise
        self._size += len(data)
        self._unwritten.clear()

    def sync(self) -> None:
        """Make all lines durable. Raises what `flush` raises."""
        self.flush()
        os.fsync(self._stream.fileno())

    def rewind(self, step: int) -> "MetricsFile":
        """The file without the lines of steps behind `step`. This one is closed."""
        self.close()
        return MetricsFile(self.path, step)

    def close(self) -> None:
        """Write what is left, and close. Raises what `flush` raises."""
        try:
            self.flush()
        finally:
            self._stream.close()


def _lines_until(path: Path, step: int) -> list[str]:
    """The lines of steps up to `step`; none where there is no file."""
    if step == 0 or not path.exists():
        return []
    return [line_text(line) for line in read_metrics(path.parent) if line.step <= step]


class RunDirectory:
    """`<run.dir>/<run.name>`, locked for this process."""

    def __init__(self, config: Config) -> None:
        """Lock the folder and check what it holds against `config`.

        Raises:
            UserError: another process holds it, or it holds a run that `config` may not continue.
        """
        self.config = config
        self.path = path_of(config)
        self.checkpoint = (
            _named_checkpoint("run.resume", config.run.resume) if config.run.resume not in ("auto", "never") else None
        )
        self.trunk = Path(config.run.trunk).expanduser() if config.run.trunk is not None else None
        self.changes: list[str] = []
        """what is different from the last start of this run, or from its trunk, a line for each key"""
        self._metrics: MetricsFile | None = None
        try:
            self._lock = _acquire(self.path / ".lock")
            # Asked with the lock held, so that nothing of somebody else's is ever removed.
            self._made = [path.name for path in self.path.iterdir()] == [".lock"]
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}; choose another run.dir or run.name") from None
        try:
            self.existing = self._check_existing()
        except BaseException:
            self.close()
            raise

    @property
    def finished(self) -> bool:
        """Whether the folder holds this run, finished."""
        return self.existing is not None and self.existing.status == "finished" and not self._forced

    @property
    def begun(self) -> bool:
        """Whether this process has begun to write the run."""
        return self._metrics is not None

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.path / "checkpoints"

    def candidates(self) -> list[Path]:
        """The checkpoints this run may go on from, the best first."""
        if self.checkpoint is not None:
            return [self.checkpoint]
        return [*newest_first(self.checkpoints), *([self.trunk] if self.trunk is not None else [])]

    def before(self, step: int) -> list[Path]:
        """The checkpoints of steps before `step`, the newest first."""
        return [folder for folder in newest_first(self.checkpoints) if (step_of(folder) or 0) < step]

    def rewind(self, step: int) -> None:
        """Drop the metrics of steps behind `step`."""
        self._metrics = self.metrics.rewind(step)

    def begin(self, record: RunRecord, shards: Path, step: int = 0) -> None:
        """Write the configuration and the record of a run that starts now at `step`, and what it reads from its data.

        What an earlier process measured of later steps is dropped: they will be done again. Checkpoints of later steps are set
        aside: the metrics up to them are gone.
        """
        self._set_aside(step)
        shutil.copyfile(shards / "tokenizer.json", self.path / "tokenizer.json")
        shutil.copyfile(shards / "index.json", self.path / "data.json")
        self._metrics = MetricsFile(self.path / "metrics.jsonl", step)
        write_record(self.path, record)
        # Last, because a folder counts as a run once it has a configuration.
        write_atomically(self.path / "config.yaml", yaml.safe_dump(self.config.as_dict(), sort_keys=False))
        self._made = False

    def _set_aside(self, step: int) -> None:
        for folder in newest_first(self.checkpoints):
            if (step_of(folder) or 0) <= step:
                continue
            if not (folder / MANIFEST).exists():
                remove(folder)
                continue
            aside = folder.with_name(f"aside_{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            log.info("%s is set aside as %s", folder, aside.name)

    def append(self, line: StepLine | EvaluationLine) -> None:
        """Append a line to `metrics.jsonl`."""
        self.metrics.append(line)

    @property
    def metrics(self) -> MetricsFile:
        """The metrics of a run that has begun."""
        assert self._metrics is not None
        return self._metrics

    def write(self, record: RunRecord) -> None:
        """Rewrite `run.json`."""
        write_record(self.path, record)

    def close(self) -> None:
        """Release the lock. A folder that was made for a run that never began is removed."""
        if self._metrics is not None:
            with suppress(OSError, WorkFailed):  # a disk that is full has been complained of; the lock must go all the same
                self._metrics.close()
        if self._made:
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    def _check_existing(self) -> RunRecord | None:
        self._forced = False
        path = self.path / "config.yaml"
        if not path.exists():
            self._check_named_checkpoint()
            self._check_trunk()
            return None
        if self.config.run.resume == "never":
            raise UserError(f"{self.path} exists and run.resume=never: choose another run.name, or delete it")
        try:
            before = load_run_config(self.path)
            record = read_record(self.path)
        except (ValueError, OSError) as error:
            raise UserError(f"{error}; choose another run.name, or delete {self.path}") from None
        changes = _differences(before.as_dict(), self.config.as_dict())
        self.changes = [f"changed since the last start: {line}" for line in changes]
        self._check_identity(self.path, before)
        if self.checkpoint is not None and self.checkpoint.parent.resolve() != self.checkpoints.resolve():
            if record.resumed_from != str(self.checkpoint):
                raise UserError(
                    f"{self.path} exists and does not come from run.resume={self.checkpoint}: choose another run.name"
                )
            self.checkpoint = None  # it has gone on from there already
        return record

    def _check_named_checkpoint(self) -> None:
        if self.checkpoint is not None:
            before = load_run_config(self.checkpoint.parent.parent)
            self._check_identity(self.checkpoint.parent.parent, before)
            if self._forced:
                _require_same_precision("run.resume", self.checkpoint, before, self.config)
                differences = _differences(before.identity(), self.config.identity(), common=True)
                self.changes = [f"unlike {self.checkpoint}: {line}" for line in differences]

    def _check_trunk(self) -> None:
        """The trunk may differ in much, but its tensors and its tokens must be usable."""
        if self.trunk is None:
            return
        config, folder = self.config, _named_checkpoint("run.trunk", str(self.trunk))
        before = load_run_config(folder.parent.parent)
        function = tuple(key for key in config.as_dict()["model"] if key not in _START)
        for section, keys in (("model", function), ("optimizer", _MUP), ("tokenizer", ())):
            old, new = (_section(of, section, keys) for of in (before, config))
            if lines := _differences(old, new, section):
                raise UserError("\n  ".join([f"run.trunk={folder} is of a run that differs in", *lines[:_MAX_DIFFERENCES]]))
        tokens = _require_same_precision("run.trunk", folder, before, config)
        if tokens >= config.total_tokens:
            raise UserError(
                f"run.trunk={folder} has {tokens} tokens, this run is to have {config.total_tokens}: raise train.tokens"
            )
        differences = _differences(before.identity(), config.identity(), common=True)
        self.changes = [f"unlike its trunk: {line}" for line in differences if not line.startswith("run.trunk")]

    def _check_identity(self, run: Path, before: Config) -> None:
        differences = _differences(before.identity(), self.config.identity())
        if differences and not self.config.run.resume_force:
            shown = differences[:_MAX_DIFFERENCES]
            more = len(differences) - len(shown)
            if self.checkpoint is None:
                advice = "choose another run.name, or delete it (run.resume_force=true goes on all the same)"
                lines = [f"{run} holds another run: {advice}. It differs in", *shown]
            else:
                lines = [f"{self.checkpoint} is of a run that differs (run.resume_force=true goes on all the same) in", *shown]
            raise UserError("\n  ".join([*lines, *([f"and {more} more keys"] if more else [])]))
        self._forced = bool(differences)


def _require_same_precision(key: str, folder: Path, before: Config, config: Config) -> int:
    """Refuse a checkpoint that holds scales where this run has none yet, or the other way round, or others. Returns its tokens.

    Raises:
        UserError: that is so.
    """
    try:
        tokens = Manifest.read(folder).progress.tokens
    except BrokenCheckpointError as error:
        raise UserError(f"{key}={folder} is not what was saved: {error}") from None
    theirs, ours = qat_phase(before), qat_phase(config)
    quantized = theirs is not None and theirs.holds(tokens)
    if quantized != (ours is not None and ours.holds(tokens)):
        there, here = ("is quantized", "is not") if quantized else ("is not quantized", "is")
        begin = f", which begins at {ours.start} tokens ({ours.why})" if ours is not None else ""
        raise UserError(
            f"{key}={folder} {there} at its {tokens} tokens, this run {here} by then{begin}: choose a checkpoint before "
            f"both quantized phases, or another quant.start"
        )
    old, new = (_section(of, "quant", _QUANTIZER) for of in (before, config))
    if quantized and (lines := _differences(old, new, "quant")):
        raise UserError("\n  ".join([f"{key}={folder} is quantized in another way: it differs in", *lines[:_MAX_DIFFERENCES]]))
    if quantized and theirs is not None and ours is not None and theirs.start != ours.start:
        raise UserError(
            f"{key}={folder} is quantized from {theirs.start} tokens on, this run would be from {ours.start} ({ours.why}): "
            f"type quant.start={theirs.start / config.total_tokens!r}"
        )
    return tokens


def path_of(config: Config) -> Path:
    """The folder of a run."""
    return Path(config.run.dir).expanduser() / config.run.name


def _section(config: Config, section: str, keys: Sequence[str]) -> dict[str, Any]:
    """A section, or only those keys of it."""
    plain: dict[str, Any] = config.as_dict()[section]
    return {key: value for key, value in plain.items() if key in keys} if keys else plain


def _named_checkpoint(key: str, value: str) -> Path:
    """The checkpoint that a key names.

    Raises:
        UserError: it is none.
    """
    folder = Path(value).expanduser()
    if not folder.is_dir() or step_of(folder) is None:
        near = [folder / "checkpoints", folder, folder.parent]
        there = [str(found) for place in near for found in newest_first(place)][:3]
        what = (
            f"there is {', '.join(there)}"
            if there
            else f"type {'auto, never or ' * (key == 'run.resume')}a checkpoint's folder, runs/NAME/checkpoints/step_..."
        )
        raise UserError(f"{key}={value} is no checkpoint: {what}")
    return folder


def load_run_config(run: Path) -> Config:
    """The configuration a run was started with.

    Raises:
        UserError: `run` is not a run directory, or its configuration is not one this version reads.
    """
    path = run / "config.yaml"
    if not path.is_file():
        above = run.absolute().parent.parent
        hint = f"; it is a checkpoint of the run {run.parent.parent}" if (above / "config.yaml").is_file() else ""
        raise UserError(f"{run} is not a run: there is no {path}{hint}")
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        return parse_config(plain)
    except (yaml.YAMLError, UserError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path} is not a configuration of this version: {first}") from None


def _differences(old: Any, new: Any, key: str = "", *, common: bool = False) -> list[str]:
    """A line for every key that differs; with `common` only for those that both have: another option has other keys."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [name for name in {**old, **new} if not common or (name in old and name in new)]
        return [
            line
            for name in names
            for line in _differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name), common=common)
        ]
    return [] if old == new else [f"{key}: {_word(old)} there, {_word(new)} asked for"]


def _word(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # on one line, whatever is in it


def _acquire(path: Path) -> IO[str]:
    """An exclusive lock on `path`, with the holder's name in it. Waits briefly: a killed run's processes may be dying still.

    Raises:
        UserError: another process holds it; its host, process and start are named.
    """
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while (stream := _try_acquire(path)) is None:
        if time.monotonic() >= deadline:
            raise UserError(f"{path.parent} is in use by {_holder(path)}: wait for it, stop it, or choose another run.name")
        time.sleep(0.1)
    stream.truncate(0)
    stream.write(json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": now()}))
    stream.flush()
    return stream


def _try_acquire(path: Path) -> IO[str] | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        stream = open(path, "a+", encoding="utf-8")
    except FileNotFoundError:  # removed this very moment, see below
        return None
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A holder whose run never began removes the folder: a lock on a removed file locks nothing.
        if os.path.samestat(os.fstat(stream.fileno()), os.stat(path)):
            return stream
    except (BlockingIOError, FileNotFoundError):
        pass
    stream.close()
    return None


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['process']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
