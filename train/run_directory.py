"""The folder of one run: who may write into it, what an existing one means, and what is written.

One process writes: rank 0, which holds an exclusive lock as long as it lives.
"""

import fcntl
import json
import os
import shutil
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import yaml

from scaling.record import EvaluationLine, RunRecord, StepLine, append_line, read_record, write_atomically, write_record
from train.config import Config, parse_config
from train.errors import UserError

LOCK_WAIT_SECONDS = 5.0
_MAX_DIFFERENCES = 3  # a message is one to five lines


def now() -> str:
    """The time as records have it: ISO 8601, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunDirectory:
    """`<run.dir>/<run.name>`, locked for this process."""

    def __init__(self, config: Config) -> None:
        """Lock the folder and check what it holds against `config`.

        Raises:
            UserError: another process holds it, or it holds a run that `config` may not continue.
        """
        self.config = config
        self.path = Path(config.run.dir).expanduser() / config.run.name
        self._metrics: IO[str] | None = None
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
        return self.existing is not None and self.existing.status == "finished"

    def begin(self, record: RunRecord, shards: Path) -> None:
        """Write the configuration and the record of a run that starts now, and what it reads from its data."""
        (self.path / "logs").mkdir(exist_ok=True)
        shutil.copyfile(shards / "tokenizer.json", self.path / "tokenizer.json")
        shutil.copyfile(shards / "index.json", self.path / "data.json")
        self._metrics = open(self.path / "metrics.jsonl", "w", encoding="utf-8")
        write_record(self.path, record)
        # Last, because a folder counts as a run once it has a configuration.
        write_atomically(self.path / "config.yaml", yaml.safe_dump(self.config.as_dict(), sort_keys=False))
        self._made = False

    def append(self, line: StepLine | EvaluationLine) -> None:
        """Append a line to `metrics.jsonl`."""
        assert self._metrics is not None
        append_line(self._metrics, line)

    def write(self, record: RunRecord) -> None:
        """Rewrite `run.json`."""
        write_record(self.path, record)

    def close(self) -> None:
        """Release the lock. A folder that was made for a run that never began is removed."""
        if self._metrics is not None:
            with suppress(OSError):  # a disk that is full has been complained of; the lock must go all the same
                self._metrics.close()
        if self._made:
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    def _check_existing(self) -> RunRecord | None:
        path = self.path / "config.yaml"
        if not path.exists():
            return None
        if self.config.run.resume == "never":
            raise UserError(f"{self.path} exists and run.resume=never: choose another run.name, or delete it")
        try:
            differences = _differences(load_run_config(self.path).identity(), self.config.identity())
            record = read_record(self.path)
        except (ValueError, OSError) as error:
            raise UserError(f"{error}; choose another run.name, or delete {self.path}") from None
        if differences:
            shown = differences[:_MAX_DIFFERENCES]
            more = len(differences) - len(shown)
            lines = [f"{self.path} holds another run: choose another run.name, or delete it. It differs in", *shown]
            raise UserError("\n  ".join(lines) + (f" and {more} more" if more else ""))
        return record


def load_run_config(run: Path) -> Config:
    """The configuration a run was started with.

    Raises:
        UserError: `run` is not a run directory, or its configuration is not one this version reads.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run} is not a run: there is no {path}")
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        return parse_config(plain)
    except (yaml.YAMLError, UserError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path} is not a configuration of this version: {first}") from None


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            line for name in names for line in _differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
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
