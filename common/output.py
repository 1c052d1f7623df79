"""Standard output and error of this process, where a disk that is full takes nothing more of them."""

import errno
import logging
import sys
from contextlib import suppress
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class _Lossy:
    """A text stream whose text is lost where it cannot be written."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def go_on_without_output() -> None:
    """Let this process go on where what it says cannot be written: what a run says is worth less than the run.

    For commands whose result is a folder.
    """
    sys.stdout, sys.stderr = _Lossy(sys.stdout), _Lossy(sys.stderr)
    logging.raiseExceptions = False  # a log file that cannot grow is no reason for a traceback


def flushed(code: int) -> int:
    """Write what is still to be said. Returns the exit code: 1 instead of 0 where that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        if error.errno in _FULL:
            with suppress(OSError):
                print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
        code = code or 1
    with suppress(OSError):
        sys.stderr.flush()
    return code
