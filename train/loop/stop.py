"""Signals that ask a run to end: noticed everywhere, acted upon where all ranks can act together. Standard library only."""

import os
import signal
import threading
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
        """the signal's number; 0 before there was one"""
        self._noticed: float | None = None
        self._raises = False

    @contextmanager
    def listening(self, *, says: bool) -> Iterator["StopRequest"]:
        """Handle the signals within. `says`: tell the user that one was noticed.

        A thread hears of them too, because the main thread runs no handler while it waits for another rank in a collective.
        """
        handlers: list[Any] = [signal.signal(number, self._handle) for number in SIGNALS]
        heard, told = os.pipe()
        os.set_blocking(told, False)
        before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._listen, args=(heard, says), name="signals", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            signal.set_wakeup_fd(before)
            for number, handler in zip(SIGNALS, handlers, strict=True):
                signal.signal(number, handler)
            os.close(told)
            thread.join()
            os.close(heard)

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
        self.signal = self.signal or number
        if self._raises:
            raise Stopped

    def _listen(self, heard: int, says: bool) -> None:
        while numbers := os.read(heard, 1):
            number, now = numbers[0], time.monotonic()
            if number not in SIGNALS:
                continue
            if self._noticed is None:
                self.signal, self._noticed = self.signal or number, now
                if says:
                    os.write(2, f"{name_of(number)}: stopping; once more to stop at once\n".encode())
            elif now - self._noticed >= ONE_REQUEST_SECONDS:
                os._exit(128 + number)


def name_of(number: int) -> str:
    """SIGTERM for 15."""
    return signal.Signals(number).name


def exit_code(number: int, *, saved: bool) -> int:
    """0 where a signal's stop lost nothing, so that a requeued job goes on; Ctrl-C stays what a shell expects of it."""
    return 0 if saved and number != signal.SIGINT else 128 + number
