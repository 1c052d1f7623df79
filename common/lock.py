"""One process at a time: a lock file that records its holder.

The lock file is never removed on its own, because a lock on a removed file locks nothing. If its whole folder is removed, the
next process to lock creates both again.
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
    """Take an exclusive lock on the file `path`; create the file and its folder if missing. Held until `release` or exit.

    Raises:
        LockHeld: another process still holds it after `wait_seconds` (-1: wait without limit).
        OSError: the file cannot be written.
    """
    lock = FileLock(path, thread_local=False)
    deadline = time.monotonic() + wait_seconds
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=-1 if wait_seconds < 0 else max(0.0, deadline - time.monotonic()), poll_interval=_POLL_SECONDS)
        except FileNotFoundError:  # the folder was removed after mkdir
            continue
        except Timeout:
            raise LockHeld(holder_of(path)) from None
        holder = {"host": socket.gethostname(), "process": os.getpid(), "since": timestamp()}
        path.write_text(json.dumps(holder), encoding="utf-8")
        return lock


def holder_of(path: Path) -> str:
    """Which process holds a lock, or was the last to hold it."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['process']} on {holder['host']} since {holder['since']}"
    return "another process"
