"""Starts the processes of mirrors, and ends them. Nothing here waits while the run trains, and nothing raises."""

import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger("foretrain")

CLOSE_SECONDS = 20.0
"""how long the end of a run waits for its mirrors"""
HINTS = {
    "wandb": "to send it: wandb sync {run}/mirrors/wandb/offline-run-*",
    "tensorboard": "to see it: tensorboard --logdir {run}/mirrors/tensorboard",
}


class Mirrors:
    """The mirrors of one run, on the rank that writes its record."""

    def __init__(self, run: Path, names: Sequence[str]) -> None:
        """Start a process for every mirror. One that cannot be started is logged."""
        self._run = run
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in names:
            try:
                self._processes[name] = self._started(name)
            except OSError as error:
                log.warning("the mirror %s cannot be started (%s); the run goes on without", name, error)

    def _started(self, name: str) -> "subprocess.Popen[bytes]":
        # A pipe that nothing is written to: its end is the end of the run, however the run ends.
        command = [sys.executable, "-P", str(Path(__file__).with_name("process.py")), name, str(self._run.absolute())]
        (self._run / "logs").mkdir(exist_ok=True)
        with open(self._run / "logs" / f"mirror_{name}.log", "ab") as output:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True)

    def close(self) -> None:
        """The record is closed: let the mirrors copy the rest of it, and say where it is."""
        deadline = time.monotonic() + CLOSE_SECONDS
        for process in self._processes.values():
            if process.stdin is not None:
                process.stdin.close()
        for name, process in self._processes.items():
            where = f"{self._run}/logs/mirror_{name}.log"
            try:
                code = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("the mirror %s is not ready after %g s; it goes on by itself (%s)", name, CLOSE_SECONDS, where)
                continue
            if code:
                log.warning("the mirror %s failed, which changed nothing for the run: see %s", name, where)
            else:
                log.info("%s has the record; %s", name, HINTS[name].format(run=self._run))
        self._processes.clear()
