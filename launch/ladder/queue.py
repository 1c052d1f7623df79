"""The queue of a ladder on this machine: as many runs at once as processes are allowed, trunks first."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from common.errors import UserError
from common.lock import LockHeld, acquire
from launch.ladder.trunks import Job
from launch.local import STOP_SIGNALS, WORKER
from launch.supervise import PREEMPTED
from parallel.environment import end_with_parent
from scaling.record import read_record

FOLDER = ".launch"
"""in the folder of the runs: logs, locks and what was sent to a cluster"""
_TRIES = 2
_POLL_SECONDS = 0.1
_LOCK_SECONDS = 60.0


@dataclass
class _Running:
    job: Job
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]
    started: float = field(default_factory=time.monotonic)


class Queue:
    """Runs jobs with at most `processes` at a time."""

    def __init__(self, jobs: Sequence[Job], processes: int) -> None:
        self.jobs, self.processes = jobs, processes
        self.running: list[_Running] = []
        self.done = {job.folder for job in jobs if job.finished}
        self.failed: set[Path] = set()
        self.tries: dict[Path, int] = {}
        self.stopped_by = 0

    def run(self) -> int:
        """Run all that is not finished. Returns 0 if all are, 1 if one failed twice, 128 + the number of a signal."""
        for job in self.jobs:
            if job.folder in self.done:
                self._say(job, "finished before")
        with self._stopping():
            while True:
                self._start()
                if not self.running:
                    break
                time.sleep(_POLL_SECONDS)
                for running in [each for each in self.running if each.process.poll() is not None]:
                    self._end(running)
        if self.stopped_by:
            return 128 + self.stopped_by
        for job in self.jobs:
            if job.folder not in self.done | self.failed:
                self._say(job, "not started: its trunk is not finished")
        return int(len(self.done) < len(self.jobs))

    def _start(self) -> None:
        busy = {each.job.folder for each in self.running}
        free = self.processes - sum(each.job.processes for each in self.running)
        for job in self.jobs:
            waits = job.folder in busy | self.done | self.failed or (job.needs is not None and job.needs not in self.done)
            if waits or self.stopped_by or (job.processes > free and busy):
                continue
            logs = Path(job.config.run.dir).expanduser() / FOLDER / "logs"
            logs.mkdir(parents=True, exist_ok=True)
            log = open(logs / f"{job.name}.log", "ab")
            command = [sys.executable, "-P", str(WORKER), "launch", "local", "--max-restarts", "0", *job.words]
            threads = max(1, len(os.sched_getaffinity(0)) // self.processes)
            variables = {"OMP_NUM_THREADS": str(threads)} | os.environ
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables, start_new_session=True,
                preexec_fn=end_with_parent,
            )  # fmt: skip
            self.tries[job.folder] = self.tries.get(job.folder, 0) + 1
            self.running.append(_Running(job, process, log))
            busy.add(job.folder)
            free -= job.processes

    def _end(self, running: _Running) -> None:
        job, code = running.job, running.process.returncode
        self.running.remove(running)
        running.log.close()
        seconds = f"{time.monotonic() - running.started:,.0f} s"
        if code == 0 and job.finished:
            self.done.add(job.folder)
            loss = read_record(job.folder).loss
            self._say(job, f"finished, loss {loss:.4f}, {seconds}" if loss is not None else f"finished, {seconds}")
        elif self.stopped_by or code == PREEMPTED:
            self.failed.add(job.folder)
            self._say(job, "stopped; it goes on with the same command")
        elif self.tries[job.folder] < _TRIES:
            self._say(job, f"failed ({_last_line(Path(running.log.name))}); once more")
        else:
            self.failed.add(job.folder)
            self._say(job, f"failed twice: {_last_line(Path(running.log.name))} (log: {running.log.name})")

    def _say(self, job: Job, what: str) -> None:
        trunk = "trunk " if job.is_trunk else ""
        print(f"[{len(self.done)}/{len(self.jobs)}] {trunk}{job.name}: {what}", file=sys.stderr, flush=True)

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """Within, a signal is handed on to the runs, which save and end; then the queue ends."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.stopped_by = number
            print(f"{signal.Signals(number).name}: stopping {len(self.running)} runs", file=sys.stderr)
            for each in self.running:
                with suppress(ProcessLookupError):
                    each.process.send_signal(number)

        handlers: list[Any] = [signal.signal(number, stop) for number in STOP_SIGNALS]
        try:
            yield
        finally:
            for number, handler in zip(STOP_SIGNALS, handlers, strict=True):
                signal.signal(number, handler)


@contextmanager
def locked(jobs: Sequence[Job]) -> Iterator[None]:
    """Hold the lock of a ladder, so that two do not start the same runs.

    Raises:
        UserError: another one holds it.
    """
    folder = Path(jobs[-1].config.run.dir).expanduser() / FOLDER
    try:
        lock = acquire(folder / "ladder.lock", wait_seconds=_LOCK_SECONDS)
    except LockHeld as holder:
        raise UserError(f"{folder.parent}: a ladder is being run there by {holder}: wait for it, or stop it") from None
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another run.dir") from None
    try:
        yield
    finally:
        lock.release()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1].removeprefix("error: ")[:200]
