"""Verifies checkpoints: every byte is read and hashed, in parallel over the ranks."""

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from train.checkpoint.manifest import BrokenCheckpointError, Manifest
from train.checkpoint.storage import read_metadata


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """(bytes, SHA-256) of each file."""
    hashes = {}
    for name in names:
        with open(folder / name, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            hashes[name] = (stream.tell(), digest)
    return hashes


@dataclass(frozen=True)
class Verified:
    """A checkpoint whose files match its manifest."""

    folder: Path
    manifest: Manifest
    bytes_per_second: float
    """verification speed of all ranks together"""


def newest_verified(folders: Sequence[Path], skipped: list[tuple[Path, str]]) -> Verified | None:
    """The first of `folders` that verifies. For each folder before it, (folder, problem) is appended to `skipped`.

    A collective: every rank hashes its share of the files, and all get the same result. Only rank 0's `folders` count.
    """
    (agreed,) = _broadcast([folders])
    for folder in agreed:
        start = time.perf_counter()
        manifest, problem = _verify(folder)
        if manifest is not None:
            seconds = time.perf_counter() - start
            return Verified(folder, manifest, manifest.total_bytes / seconds)
        skipped.append((folder, problem))
    return None


def verify_alone(folder: Path) -> Manifest:
    """Verify a checkpoint in this process alone. Returns its manifest.

    Raises:
        BrokenCheckpointError: its manifest is missing, or its files do not match it.
    """
    manifest = Manifest.read(folder)
    problem = _first_problem(folder, manifest, sorted(manifest.files))
    if problem:
        raise BrokenCheckpointError(problem)
    return manifest


def _verify(folder: Path) -> tuple[Manifest | None, str]:
    """(manifest, "") if the checkpoint verifies, else (None, problem); the same on every rank."""
    rank, size = dist.get_rank(), dist.get_world_size()
    # Rank 0 reads the manifest for all ranks, so that all use the same one.
    manifest: Manifest | None = None
    problem = ""
    if rank == 0:
        try:
            manifest = Manifest.read(folder)
            read_metadata(folder)
        except BrokenCheckpointError as error:
            manifest, problem = None, str(error)
    manifest, problem = _broadcast([manifest, problem])
    if manifest is None:
        return None, problem
    shares: list[list[str]] = [[] for _ in range(size)]
    loads = [0] * size
    for name, (num_bytes, _) in sorted(manifest.files.items(), key=lambda item: -item[1][0]):
        least_loaded = loads.index(min(loads))
        shares[least_loaded].append(name)
        loads[least_loaded] += num_bytes
    problems: list[str] = [""] * size
    dist.all_gather_object(problems, _first_problem(folder, manifest, shares[rank]))
    problem = next((text for text in problems if text), "")
    return (None, problem) if problem else (manifest, "")


def _first_problem(folder: Path, manifest: Manifest, names: Iterable[str]) -> str:
    for name in names:
        size, digest = manifest.files[name]
        try:
            actual_size = (folder / name).stat().st_size
            if actual_size != size:
                return f"{name} has {actual_size:,} bytes, {size:,} were written"
            if hash_files(folder, [name])[name][1] != digest:
                return f"{name} is not what was written: its SHA-256 differs"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""


def _broadcast(values: list) -> list:  # type: ignore[type-arg]
    """Rank 0's values on every rank."""
    dist.broadcast_object_list(values, src=0)
    return values
