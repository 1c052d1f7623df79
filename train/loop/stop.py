"""Signals that ask a run to stop: caught at any time, acted on where all ranks can act together. Standard library only."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""SLURM warns a job with the signal that `--signal` names and ends it with SIGTERM; Ctrl-C is SIGINT."""

ONE_REQUEST_SECONDS = 2.0
"""Signals this close together are one request: a cluster signals every process, and torchrun forwards its own signal."""


START_SECONDS = 3.0
"""How long after a signal a process may still start, for a rank may be waiting for one that is dead."""


class Stopped(BaseException):
    """Raised by a signal while the run has nothing to save."""


class StopRequest:
    """Remembers the first signal; a second one ends the process at once. That is safe: files on disk are whole at any time."""

    def __init__(self) -> None:
        self.signal = 0
        """number of the first signal; 0: none yet"""
        self.acts = False
        """whether the loop is there to act on a signal: before that, nothing is lost by ending"""
        self._first_time: float | None = None
        self._raises = False
        self._listening = False

    @contextmanager
    def listening(self, *, verbose: bool) -> Iterator["StopRequest"]:
        """Handle the signals within. `verbose`: tell the user when one arrives.

        A thread listens too, because the main thread runs no handler while it waits for another rank in a collective.
        """
        handlers: list[Any] = [signal.signal(number, self._handle) for number in SIGNALS]
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        previous_fd = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._listen, args=(read_end, verbose), name="signals", daemon=True)
        thread.start()
        self._listening = True
        try:
            yield self
        finally:
            self._listening = False
            signal.set_wakeup_fd(previous_fd)
            for number, handler in zip(SIGNALS, handlers, strict=True):
                signal.signal(number, handler)
            os.close(write_end)
            thread.join()
            os.close(read_end)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Within, a signal raises `Stopped`: for work that can be interrupted anywhere."""
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

    def _listen(self, read_end: int, verbose: bool) -> None:
        while numbers := os.read(read_end, 1):
            number, now = numbers[0], time.monotonic()
            if number not in SIGNALS:
                continue
            if self._first_time is None:
                self.signal, self._first_time = self.signal or number, now
                if verbose:
                    os.write(2, f"{name_of(number)}: stopping; once more to stop at once\n".encode())
                timer = threading.Timer(START_SECONDS, self._end_unless_acting, (number,))
                timer.daemon = True
                timer.start()
            elif now - self._first_time >= ONE_REQUEST_SECONDS:
                os._exit(128 + number)

    def _end_unless_acting(self, number: int) -> None:
        if not self.acts and self._listening:
            os._exit(128 + number)


def name_of(number: int) -> str:
    """The name of a signal: SIGTERM for 15."""
    return signal.Signals(number).name


def exit_code(number: int, *, saved: bool) -> int:
    """The exit code after a signal: 0 if the run was saved, so that a requeued job resumes; else 128 + the signal's number.

    Ctrl-C always gives 128 + its number, as shells expect.
    """
    return 0 if saved and number != signal.SIGINT else 128 + number
