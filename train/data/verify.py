"""Whether the tokens on disk are what was written: every byte is compared with the hashes in the index.

A machine does so when it first uses a folder, in the background of the run, and remembers size and time of every file in
`<folder>/verified_<host>.json`. A file that has changed since is compared again.
"""

import hashlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import WorkFailed
from common.files import write_atomically
from common.words import speed

log = logging.getLogger("foretrain")

_CHUNK_BYTES = 4 << 20
_MOST_THREADS = 8  # more do not read a disk faster
_NICENESS = 10  # training goes first


class DamagedTokens(WorkFailed):
    """The tokens on disk are not what was written; the message says which file, and what to type."""


@dataclass(frozen=True)
class Checked:
    """What was compared."""

    bytes: int
    seconds: float
    files: int
    unhashed: int
    """files of an index that was written before it had hashes; their content was not compared"""

    def __str__(self) -> str:
        without = f"; {self.unhashed} files have no hash in the index and were not compared" if self.unhashed else ""
        return f"{self.bytes:,} bytes of tokens verified at {speed(self.bytes, self.seconds)}{without}"


def verify_tokens(folder: Path, stop: threading.Event | None = None) -> Checked:
    """Compare every file of a folder of tokens with its index, in parallel, and remember the result for this machine.

    `stop`: give up when it is set; nothing is remembered then.

    Raises:
        DamagedTokens: a file differs, or cannot be read.
    """
    started = time.perf_counter()
    hashes = _hashes(folder)
    known = {name: digest for name, digest in hashes.items() if digest is not None}
    stamps = _stamps(folder, hashes)
    stop = stop or threading.Event()

    def work(name: str) -> int:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        return _compare(folder / name, known[name], stop)

    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)), max(1, len(known)))
    with ThreadPoolExecutor(threads, thread_name_prefix="tokens") as pool:
        sizes = list(pool.map(work, known))
    checked = Checked(sum(sizes), time.perf_counter() - started, len(hashes), len(hashes) - len(known))
    if not stop.is_set():
        with suppress(OSError):  # the folder may be read-only: then every start compares
            write_atomically(_remembered(folder), json.dumps(stamps, indent=2) + "\n")
    return checked


def is_verified(folder: Path) -> bool:
    """Whether this machine has compared the files as they are now."""
    try:
        remembered = json.loads(_remembered(folder).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return bool(remembered == _stamps(folder, _hashes(folder)))


class Verification:
    """The comparison in the background of a run."""

    def __init__(self, folder: Path, *, wanted: bool) -> None:
        """Begin, unless this machine has compared the folder before or `wanted` is False."""
        self._stop = threading.Event()
        self._problem: WorkFailed | None = None
        self._checked: Checked | None = None
        self._thread: threading.Thread | None = None
        if wanted and not is_verified(folder):
            self._thread = threading.Thread(target=self._work, args=(folder,), name="verification", daemon=True)
            self._thread.start()

    def check(self) -> None:
        """Raise `DamagedTokens` if damage has been found by now; log the speed once all has been compared."""
        if self._problem is not None:
            raise self._problem
        if (checked := self._checked) is not None:
            self._checked = None
            log.info("%s", checked)

    def wait(self) -> None:
        """Wait for the end. Called before a checkpoint, so that none holds what was learned from damaged tokens.

        Raises:
            DamagedTokens: the tokens are damaged.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        """Give up."""
        self._stop.set()

    def _work(self, folder: Path) -> None:
        try:
            self._checked = verify_tokens(folder, self._stop)
        except WorkFailed as problem:
            self._problem = problem


def damaged(path: Path, problem: str) -> DamagedTokens:
    """The error for a file of tokens that is not what was written."""
    return DamagedTokens(
        f"the tokens in {path.parent} are damaged: {path.name} {problem}\n"
        f"delete that folder and type the same command again: the tokens are built anew, and a run goes on from its newest "
        f"checkpoint"
    )


def _compare(path: Path, expected: str, stop: threading.Event) -> int:
    """Compare a file with its hash. Returns its bytes."""
    digest = hashlib.sha256()
    size = 0
    try:
        with path.open("rb", buffering=0) as file:
            while not stop.is_set() and (chunk := file.read(_CHUNK_BYTES)):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror or error}") from None
    if not stop.is_set() and digest.hexdigest() != expected:
        raise damaged(path, "is not what was written: its SHA-256 differs")
    return size


def _hashes(folder: Path) -> dict[str, str | None]:
    """The hash of every file in the index; None where the index was written before it had hashes."""
    index: Mapping[str, Any] = json.loads((folder / "index.json").read_bytes())
    return {name: split.get("sha256", {}).get(name) for split in index["splits"].values() for name in split["files"]}


def _stamps(folder: Path, names: Mapping[str, str | None]) -> dict[str, list[int]]:
    """Size and modification time of each file; the index counts too, because it has the hashes."""
    stamps = {}
    for name in [*names, "index.json"]:
        try:
            status = (folder / name).stat()
        except OSError as error:
            raise damaged(folder / name, f"cannot be read: {error.strerror}") from None
        stamps[name] = [status.st_size, status.st_mtime_ns]
    return stamps


def _remembered(folder: Path) -> Path:
    return folder / f"verified_{socket.gethostname()}.json"
