"""One builder at a time: an exclusive lock per content hash, and the removal of killed builders' files."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.files import sync_folder
from common.lock import LockHeld, acquire

_BUILDING = ".building-"


@contextmanager
def exclusive(lock: Path, *, announce: bool) -> Iterator[None]:
    """Hold the lock; wait if another process has it. With `announce`, print once to standard error which process that is."""
    try:
        file_lock = acquire(lock, wait_seconds=0.0)
    except LockHeld as holder:
        if announce:
            print(f"waiting for {holder}, which is building {lock.with_suffix('')}", file=sys.stderr, flush=True)
        file_lock = acquire(lock, wait_seconds=-1.0)
    try:
        yield
    finally:
        file_lock.release()


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, removed on exit unless it was renamed. The caller holds the lock of `folder`."""
    temporary = folder.with_name(f"{_BUILDING}{folder.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, folder: Path) -> None:
    """Give what is built its place, whole. The caller holds the lock of `folder`."""
    sync_folder(temporary)
    if folder.exists():  # without an index, which was removed by hand
        shutil.rmtree(folder)
    os.rename(temporary, folder)
    sync_folder(folder.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary folders of killed builders. The caller holds the lock of `folder`."""
    for leftover in folder.parent.glob(f"{_BUILDING}*"):
        content_hash = leftover.name.removeprefix(_BUILDING).split("-")[0]
        lock = folder.with_name(f"{content_hash}.lock")
        if content_hash == folder.name:
            shutil.rmtree(leftover, ignore_errors=True)
        elif lock.exists():
            with suppress(LockHeld, OSError):
                file_lock = acquire(lock, wait_seconds=0.0)
                shutil.rmtree(leftover, ignore_errors=True)
                file_lock.release()
