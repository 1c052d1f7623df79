"""The trained weights of a run, for whoever does not train: from its newest checkpoint, once that has been verified."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from parallel.compose import Fill
from train.checkpoint.manifest import BrokenCheckpointError, newest_first
from train.checkpoint.storage import read_state, read_whole
from train.checkpoint.verify import verify_alone
from train.errors import UserError


def newest_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run; every byte of it is read and compared.

    Raises:
        UserError: there is none, or it is not what was saved.
    """
    folders = newest_first(run / "checkpoints")
    if not folders:
        raise UserError(f"{run} has no checkpoint yet")
    try:
        verify_alone(folders[0])
    except BrokenCheckpointError as error:
        raise UserError(f"{folders[0]} is not what was saved: {error}") from None
    return folders[0]


@contextmanager
def weights_of(run: Path) -> Iterator[Fill]:
    """Fills whole parameters with the newest weights of a run, one by one. Raises what `newest_checkpoint` raises."""
    folder = newest_checkpoint(run)

    def fill(name: str, local: Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
        assert tuple(local.shape) == shape
        read_state(folder, {f"model.{name}": local})

    yield fill


def load_weights(run: Path) -> dict[str, Tensor]:
    """The newest weights of a run, by parameter name, whole, on the CPU. Raises what `newest_checkpoint` raises."""
    folder = newest_checkpoint(run)
    try:
        return read_whole(folder, "model.")
    except BrokenCheckpointError as error:
        raise UserError(f"{folder} is not what was saved: {error}") from None
