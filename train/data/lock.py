"""One builder at a time: an exclusive lock per content hash, and what killed builders left behind."""

import fcntl
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BUILDING = ".building-"


@contextmanager
def exclusive(lock: Path, *, announce: bool) -> Iterator[None]:
    """Hold the lock, waiting for whoever has it; with `announce`, say once on standard error who that is.

    The lock file holds host and process id of its last holder. It is never removed: a lock on a removed file locks
    nothing.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if announce:
                holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
                print(f"waiting for {holder}, which is building {lock.with_suffix('')}", file=sys.stderr, flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"host {socket.gethostname()}, process {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`; gone afterwards unless it has been renamed. Hold the lock of `folder`."""
    temporary = folder.with_name(f"{_BUILDING}{folder.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary folders of builders that were killed. Hold the lock of `folder`."""
    for leftover in folder.parent.glob(f"{_BUILDING}*"):
        content_hash = leftover.name.removeprefix(_BUILDING).split("-")[0]
        if content_hash == folder.name:
            shutil.rmtree(leftover, ignore_errors=True)
        elif (descriptor := _try_lock(folder.with_name(f"{content_hash}.lock"))) is not None:
            try:
                shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(descriptor)


def _try_lock(lock: Path) -> int | None:
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
