"""The folder of a checkpoint and its manifest. Imports no torch."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.files import sync_folder, write_atomically

SCHEMA = 1
NAME = "manifest.json"
_FOLDER = re.compile(r"step_(\d{8,})")


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a run: together with the tensors, all that later steps depend on."""

    step: int = 0
    """optimizer steps done"""
    tokens: int = 0
    """tokens trained on; the schedules depend on them"""
    samples: int = 0
    """the global number of the next sample"""
    skipped: tuple[tuple[int, int], ...] = ()
    """ranges of sample numbers (first, one after the last) that were skipped after a rewind"""

    def after(self, tokens: int, samples: int) -> "Progress":
        """The progress after one more step of `tokens` tokens and `samples` samples."""
        step, samples = self.step + 1, self.samples + samples
        return dataclasses.replace(self, step=step, tokens=self.tokens + tokens, samples=samples)


class BrokenCheckpointError(ValueError):
    """A checkpoint is incomplete, damaged, or does not fit. The message says what is wrong with which file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Describes a checkpoint, and lists its files so that they can be verified."""

    progress: Progress
    config_hash: str
    """hash of the identity of the run that wrote it"""
    layout: dict[str, int]
    world_size: int
    precision: str
    versions: dict[str, str]
    saved: str
    """time, ISO 8601, UTC"""
    files: dict[str, tuple[int, str]]
    """name -> (bytes, SHA-256)"""

    @property
    def total_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(size for size, _ in self.files.values())

    def write(self, folder: Path) -> None:
        """Write it, atomically. From then on the checkpoint is complete."""
        plain = {"schema": SCHEMA, **dataclasses.asdict(self)}
        plain["files"] = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in self.files.items()}
        write_atomically(folder / NAME, json.dumps({**plain, "checksum": _checksum(plain)}, indent=2) + "\n")
        sync_folder(folder)

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """Read it.

        Raises:
            BrokenCheckpointError: it is missing or damaged.
        """
        path = folder / NAME
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            checksum = plain.pop("checksum")
            if checksum != _checksum(plain):
                raise ValueError("its checksum is wrong")
            if plain.pop("schema") != SCHEMA:
                raise ValueError(f"it is not of schema {SCHEMA}")
            plain["progress"]["skipped"] = tuple((first, end) for first, end in plain["progress"]["skipped"])
            plain["progress"] = Progress(**plain["progress"])
            plain["files"] = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in plain["files"].items()}
            if any(os.path.basename(name) != name for name in plain["files"]):
                raise ValueError("it names files outside its folder")
            return Manifest(**plain)
        except FileNotFoundError:
            raise BrokenCheckpointError("it was never completed: there is no manifest.json") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BrokenCheckpointError(f"its manifest.json cannot be trusted: {error or type(error).__name__}") from None


def _checksum(plain: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def folder_of(checkpoints: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return checkpoints / f"step_{step:08d}"


def step_of(folder: Path) -> int | None:
    """The step in the name of a checkpoint's folder; None if it is not a checkpoint's name."""
    name = _FOLDER.fullmatch(folder.name)
    return int(name[1]) if name else None


def newest_first(checkpoints: Path) -> list[Path]:
    """All folders of checkpoints, complete or not, the newest first."""
    folders = [entry for entry in checkpoints.glob("step_*") if step_of(entry) is not None and entry.is_dir()]
    return sorted(folders, key=lambda folder: -(step_of(folder) or 0))


def remove(folder: Path) -> None:
    """Remove a checkpoint, its manifest first, so that it is incomplete at once."""
    (folder / NAME).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


ForGood = Callable[[int, int], bool]
"""(tokens of the checkpoint before, tokens) -> whether a checkpoint is kept forever."""


def retain(checkpoints: Path, *, keep: int, for_good: ForGood) -> None:
    """Remove the complete checkpoints that are neither among the newest `keep` nor kept forever."""
    complete = [(folder, Manifest.read(folder).progress.tokens) for folder in newest_first(checkpoints) if _is_readable(folder)]
    before = {folder: older for (folder, _), (_, older) in zip(complete, [*complete[1:], (None, 0)], strict=True)}
    for folder, tokens in complete[keep:]:
        if not for_good(before[folder], tokens):
            remove(folder)


def _is_readable(folder: Path) -> bool:
    try:
        Manifest.read(folder)
    except BrokenCheckpointError:
        return False
    return True
