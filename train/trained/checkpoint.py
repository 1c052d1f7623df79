"""Reads the weights of a run from its newest checkpoint, which is verified first."""

from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from common.errors import UserError
from parallel.rectangles import Rectangles
from train.checkpoint.manifest import NAME as MANIFEST
from train.checkpoint.manifest import BrokenCheckpointError, newest_first
from train.checkpoint.storage import read_metadata, read_state, read_whole
from train.checkpoint.verify import verify_alone


def newest_checkpoint(run: Path) -> Path:
    """The newest complete checkpoint of a run, after every byte of it was verified.

    Raises:
        UserError: there is none, or it is damaged.
    """
    # A checkpoint without a manifest is still being written, or was never completed.
    folders = [folder for folder in newest_first(run / "checkpoints") if (folder / MANIFEST).exists()]
    if not folders:
        raise UserError(f"{run} has no checkpoint yet")
    try:
        verify_alone(folders[0])
        read_metadata(folders[0])
    except BrokenCheckpointError as error:
        raise UserError(f"{folders[0]} is not what was saved: {error}") from None
    return folders[0]


def read_weights(folder: Path, state: Mapping[str, Tensor | Rectangles], group: dist.ProcessGroup | None = None) -> None:
    """Read a checkpoint's tensors into those of `state`, each rank of `group` its slices.

    Raises:
        UserError: the checkpoint lacks one of them.
    """
    try:
        read_state(folder, state, group)
    except BrokenCheckpointError as error:
        raise UserError(f"{folder} does not have the weights of this run: {error}") from None


def load_weights(run: Path) -> dict[str, Tensor]:
    """The newest weights of a run by parameter name; whole, on the CPU. Raises as `newest_checkpoint` does."""
    folder = newest_checkpoint(run)
    try:
        return read_whole(folder, "model.")
    except BrokenCheckpointError as error:
        raise UserError(f"{folder} is not what was saved: {error}") from None
