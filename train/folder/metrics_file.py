"""`metrics.jsonl` while a run writes it."""

import errno
import logging
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path

from common.errors import WorkFailed
from common.files import write_atomically
from common.words import ranges
from scaling.record import EvaluationLine, StepLine, line_text, read_metrics

log = logging.getLogger("foretrain")


class MetricsFile:
    """`metrics.jsonl`, open for appending. A temporarily full disk loses no lines: they are written once it has room."""

    MOST_UNWRITTEN = 10_000

    def __init__(self, path: Path, step: int, *, whole: bool = False) -> None:
        """Drop the lines of steps after `step`, and those that cannot be read, and open the file.

        What cannot be read and which steps are missing is logged, and the file is kept as `aside_metrics.jsonl` if a line was
        damaged. `whole`: the steps begin with 1.
        """
        self.path = path
        self._lock = threading.Lock()  # the checkpoint thread syncs the file too
        self._unwritten: list[str] = []
        lines = _lines_until(path, step, whole)
        write_atomically(path, "".join(lines))
        self._stream = open(path, "ab", buffering=0)
        self._size = path.stat().st_size

    def append(self, line: StepLine | EvaluationLine) -> None:
        """Write a line, or keep it in memory until the disk accepts it.

        Raises:
            WorkFailed: too many lines are unwritten.
        """
        with self._lock:
            self._unwritten.append(line_text(line))
            try:
                self._write()
            except OSError as error:
                if len(self._unwritten) == 1:
                    message = "step %d: %s cannot be written (%s); its lines are kept until it can"
                    log.warning(message, line.step, self.path, error)
                if len(self._unwritten) > self.MOST_UNWRITTEN:
                    raise WorkFailed(f"{self.path} could not be written for {self.MOST_UNWRITTEN} lines: {error}") from error

    def flush(self) -> None:
        """Write all unwritten lines.

        Raises:
            OSError: the disk failed; no incomplete line is left in the file.
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
        """Make all lines durable. Raises as `flush` does."""
        self.flush()
        os.fsync(self._stream.fileno())

    def rewind(self, step: int) -> "MetricsFile":
        """Close this file. Returns it reopened, without the lines of steps after `step`."""
        self.close()
        return MetricsFile(self.path, step)

    def close(self) -> None:
        """Write all unwritten lines, and close the file. Raises as `flush` does."""
        try:
            self.flush()
        finally:
            self._stream.close()


def _lines_until(path: Path, step: int, whole: bool) -> list[str]:
    """The readable lines of steps up to `step`, each step once; none if there is no file. Logs what is missing."""
    if step == 0:
        return []
    unreadable: list[str] = []
    kept: list[str] = []
    steps: list[int] = []
    for line in read_metrics(path.parent, unreadable) if path.exists() else ():
        if isinstance(line, StepLine):
            if line.step > step or line.step <= (steps[-1] if steps else 0):
                continue
            steps.append(line.step)
        elif line.step > step:
            continue
        kept.append(line_text(line))
    for problem in unreadable[:3]:
        log.warning("%s; the line is left out", problem)
    if unreadable:
        shutil.copyfile(path, path.with_name(f"aside_{path.name}"))
        damaged = f"{len(unreadable)} line{'s' * (len(unreadable) > 1)} damaged"
        log.warning("%s: %s; the file is kept as aside_%s", path, damaged, path.name)
    first = 1 if whole else min(steps, default=step + 1)
    if missing := sorted(set(range(first, step + 1)) - set(steps)):
        log.warning("%s lacks step%s %s, which the checkpoint has", path, "s" * (len(missing) > 1), ranges(missing))
    return kept
