"""Signals that ask a run to end: noticed everywhere, acted upon where all ranks can act together. Standard library only."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""SLURM warns by whichever of them `--signal` names and ends a job by SIGTERM; Ctrl-C is SIGINT."""

ONE_REQUEST_SECONDS = 2.0
"""Signals this close together are one request: a cluster sends SIGTERM to every process, and torchrun passes its own on."""


class Stopped(BaseException):
    """Raised by a signal where there is nothing that could be saved."""


class StopRequest:
    """Remembers the first signal; a second one ends the process at once (whatever is on disk is whole at any moment)."""

    def __init__(self) -> None:
        self.signal = 0
        """the signal's number; 0 while there was none"""
        self._noticed = 0.0
        self._raises = False

    @contextmanager
    def listening(self, *, says: bool) -> Iterator["StopRequest"]:
        """Handle the signals within. `says`: tell the user that it was noticed."""
        handlers: list[Any] = [signal.signal(number, self._handle) for number in SIGNALS]
        self._says = says
        try:
            yield self
        finally:
            for number, handler in zip(SIGNALS, handlers, strict=True):
                signal.signal(number, handler)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Within, a signal raises `Stopped`: for work that can be broken off anywhere."""
        self._raises = True
        try:
            if self.signal:
                raise Stopped
            yield
        finally:
            self._raises = False

    @property
    def name(self) -> str:
        """The signal's name."""
        return name_of(self.signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal and now - self._noticed >= ONE_REQUEST_SECONDS:
            os._exit(128 + number)
        if self.signal:
            return
        self.signal, self._noticed = number, now
        if self._says:
            # Not print: the signal may have come in the middle of one.
            os.write(sys.stderr.fileno(), f"{name_of(number)}: stopping; once more to stop at once\n".encode())
        if self._raises:
            raise Stopped


def name_of(number: int) -> str:
    """SIGTERM for 15."""
    return signal.Signals(number).name


def exit_code(number: int, *, saved: bool) -> int:
    """0 where a signal's stop lost nothing, so that a requeued job goes on; Ctrl-C stays what a shell expects of it."""
    return 0 if saved and number != signal.SIGINT else 128 + number
