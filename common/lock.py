"""One process at a time: a lock file that says who holds it.

The file is never removed by itself: a lock on a removed file locks nothing. Where its whole folder was removed, the next one
makes both anew.
"""

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from common.words import timestamp

_POLL_SECONDS = 0.1


class LockHeld(Exception):
    """Another process holds the lock; the message names it."""


def acquire(path: Path, *, wait_seconds: float) -> FileLock:
    """An exclusive lock on the file `path`, made with its folder where it is missing. Held until `release` or the process ends.

    Raises:
        LockHeld: another process has it and does not let go within `wait_seconds` (-1: however long that takes).
        OSError: the file cannot be written.
    """
    lock = FileLock(path, thread_local=False)
    deadline = time.monotonic() + wait_seconds
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=-1 if wait_seconds < 0 else max(0.0, deadline - time.monotonic()), poll_interval=_POLL_SECONDS)
        except FileNotFoundError:  # its folder was removed this very moment
            continue
        except Timeout:
            raise LockHeld(holder_of(path)) from None
        holder = {"host": socket.gethostname(), "process": os.getpid(), "since": timestamp()}
        path.write_text(json.dumps(holder), encoding="utf-8")
        return lock


def holder_of(path: Path) -> str:
    """Who holds a lock, or held it last."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['process']} on {holder['host']} since {holder['since']}"
    return "another process"
