"""Files that are written atomically and survive a crash of the machine."""

import os
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically: write a temporary file beside it, flush that to disk, rename it over `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content if isinstance(content, bytes) else content.encode())
            sync(stream)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(stream: IO[Any]) -> None:
    """Make everything written to an open file durable."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: files that were created, renamed or removed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
