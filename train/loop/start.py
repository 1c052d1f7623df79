"""Loads the checkpoint that a run resumes from: at its start, and after a step that went wrong."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from common.errors import UserError, WorkFailed
from common.words import speed
from parallel.engine.protocol import Engine
from train.build.quantization import Quantization
from train.checkpoint.manifest import NAME as MANIFEST
from train.checkpoint.manifest import BrokenCheckpointError, Progress
from train.checkpoint.storage import read_state
from train.checkpoint.verify import Verified, newest_verified
from train.folder.directory import RunDirectory

log = logging.getLogger("foretrain")


class Resumption:
    """Finds the checkpoint to resume from and loads it into the engine. Every rank has one and makes the same calls."""

    def __init__(self, engine: Engine, quantization: Quantization, directory: RunDirectory | None) -> None:
        """`directory`: None on all ranks but 0, which finds the checkpoints for all."""
        self._engine, self._quantization, self._directory = engine, quantization, directory

    def newest(self) -> Verified | None:
        """Load the newest checkpoint that verifies. Returns None if there is none and the run begins. A collective.

        Raises:
            UserError: the checkpoint that the user named is damaged, or does not fit this run.
            WorkFailed: the run has checkpoints, and none of them verifies: it does not begin again by itself.
        """
        directory = self._directory
        refused: list[tuple[Path, str]] = []
        verified = newest_verified(directory.candidates() if directory is not None else [], refused)
        if verified is None and directory is not None and (directory.checkpoint or directory.trunk):
            key = "run.resume" if directory.checkpoint else "run.trunk"
            raise UserError(f"{key}={refused[-1][0]} is not what was saved: {refused[-1][1]}")
        if directory is not None and (verified is None or verified.folder.parent != directory.checkpoints):
            _require_none_lost(directory, refused)
        for folder, problem in refused:
            log.warning("%s is passed over: %s", folder, problem)
        if verified is not None:
            self._load(verified)
            log.info(
                "going on from %s (%s tokens); %s bytes verified at %s",
                verified.folder,
                f"{verified.manifest.progress.tokens:,}",
                f"{verified.manifest.total_bytes:,}",
                speed(verified.bytes_per_second, 1.0),
            )
        elif directory is not None and directory.existing is not None:
            why = "run.resume=restart" if directory.restarts else f"{directory.path} was left unfinished without a checkpoint"
            log.info("%s: starting over", why)
        return verified

    def before(self, step: int) -> Verified | None:
        """Load the newest checkpoint before `step` that verifies. Returns None if there is none. A collective."""
        folders: Sequence[Path] = self._directory.before(step) if self._directory is not None else []
        verified = newest_verified(folders, [])
        if verified is not None:
            self._load(verified)
        return verified

    def _load(self, verified: Verified) -> None:
        self._quantization.restore(verified.manifest.progress.tokens)
        try:
            self._engine.load(lambda state: read_state(verified.folder, state, dist.group.WORLD))
        except BrokenCheckpointError as error:
            raise UserError(f"{verified.folder} does not fit this run: {error}") from None


def _require_none_lost(directory: RunDirectory, refused: Sequence[tuple[Path, str]]) -> None:
    """Refuse to begin where checkpoints of this run are there and none verifies: the storage may be at fault.

    Only the first save of a run, killed on its way, leaves a single folder that never had a manifest.

    Raises:
        WorkFailed: checkpoints were refused that had been complete.
    """
    lost = [(folder, problem) for folder, problem in refused if folder.parent == directory.checkpoints]
    if not lost or (len(lost) == 1 and not (lost[0][0] / MANIFEST).exists()):
        return
    shown = [f"  {folder.name}: {problem}" for folder, problem in lost[:2]]
    more = f" (and {len(lost) - 2} more)" if len(lost) > 2 else ""
    raise WorkFailed(
        "\n".join(
            [
                f"none of the {len(lost)} checkpoints of {directory.path} verifies{more}, so it cannot go on:",
                *shown,
                "If the storage is at fault, mend it and type the same command again.",
                "To begin at step 0 instead, type run.resume=restart once; these checkpoints are set aside then.",
            ]
        )
    )


def skip_samples(progress: Progress, bad: Progress) -> Progress:
    """The checkpoint's `progress`, but continuing with the samples after the bad step, which ended at `bad`."""
    first = progress.samples
    for _, end in bad.skipped:
        first = max(first, end)  # an earlier rewind to this checkpoint has skipped these already
    return dataclasses.replace(progress, samples=bad.samples, skipped=(*bad.skipped, (first, bad.samples)))
