"""A state on disk, through torch.distributed.checkpoint: written by all ranks of one layout, read by the ranks of any other.

Reading runs no code from the checkpoint. Torch's metadata is a pickle, so it is read with an unpickler that allows only the few
classes of a checkpoint's metadata. Entries that are not tensors are refused, because torch would unpickle them without limits.
"""

import io
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem, WriteItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from parallel.rectangles import Rectangles
from train.checkpoint.manifest import BrokenCheckpointError

METADATA = ".metadata"

_TORCH_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size"} | {str(kind).removeprefix("torch.") for kind in vars(torch).values() if isinstance(kind, torch.dtype)},
    "torch.serialization": {"_get_layout"},  # a look-up of a layout by its name
    "pathlib": {"Path", "PosixPath"},
    "collections": {"OrderedDict"},
}

Copies = Mapping[str, Tensor]
"""Name -> a copy of this rank's slice, on the CPU, unchanged until it is written."""


def copy_to_cpu(state: Mapping[str, Tensor | Rectangles], into: dict[str, Tensor]) -> None:
    """Copy this rank's parts into the buffers `into`. Missing buffers are made (pinned for a GPU)."""
    on_gpu = False
    for name, value in state.items():
        like = value.like if isinstance(value, Rectangles) else _local(value)
        shape = (value.numel(),) if isinstance(value, Rectangles) else like.shape
        on_gpu |= (pinned := like.device.type == "cuda")
        if name not in into:
            into[name] = torch.empty(shape, dtype=like.dtype, pin_memory=pinned)
        if isinstance(value, Rectangles):
            value.copy_to(into[name])
        else:
            into[name].copy_(like, non_blocking=True)
    if on_gpu:
        torch.cuda.synchronize()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class _CopiesPlanner(DefaultSavePlanner):
    """Plans with the live tensors, whose shapes and placements do not change, and writes the copies."""

    def __init__(self, copies: Copies) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._copies = copies

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        name = write_item.index.fqn
        part = self.state_dict[name]
        if isinstance(part, Rectangles):
            return part.backed_by(self._copies[name]).__get_tensor_shard__(write_item.index)
        return self._copies[name]


def write_state(folder: Path, state: Mapping[str, Tensor | Rectangles], copies: Copies, group: dist.ProcessGroup) -> None:
    """Write the copies of a state, each slice once even if several ranks hold it. A collective of `group`.

    Raises:
        OSError: on every rank, if any rank could not write.
    """
    # What is written is in host memory: torch's loader would copy from GPUs, and takes memory on GPU 0 of every rank for that.
    writer = FileSystemWriter(folder, per_thread_copy_ahead=0)
    try:
        save(dict(state), storage_writer=writer, planner=_CopiesPlanner(copies), process_group=group)
    except CheckpointException as error:
        rank, (failure, _) = next(iter(error.failures.items()))
        # torch's zip writer hides the error of the system behind one of its own.
        masked = "inline_container" in str(failure)
        why = "a file could not be written whole (is the disk full?)" if masked else failure
        raise OSError(f"rank {rank}: {why}") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _TORCH_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise BrokenCheckpointError(f"{METADATA} asks for {module}.{name}, which no checkpoint needs: it is not to be trusted")


class _Reader(FileSystemReader):
    """Reads torch's metadata without running code from it."""

    def read_metadata(self, *arguments: Any, **keywords: Any) -> Metadata:
        return read_metadata(Path(self.path))


def read_metadata(folder: Path) -> Metadata:
    """Torch's metadata of a checkpoint.

    Raises:
        BrokenCheckpointError: it is damaged, or describes anything but tensors in this folder.
    """
    try:
        with open(folder / METADATA, "rb") as stream:
            metadata = _Unpickler(stream).load()
    except BrokenCheckpointError:
        raise
    except Exception as error:  # a broken pickle fails in many ways
        raise BrokenCheckpointError(f"{METADATA} cannot be read: {error!r}") from None
    if not isinstance(metadata, Metadata):
        raise BrokenCheckpointError(f"{METADATA} holds no metadata")
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise BrokenCheckpointError(f"{METADATA} says that {name} is no tensor")
    for location in metadata.storage_data.values():
        if Path(location.relative_path).name != location.relative_path or location.transform_descriptors:
            raise BrokenCheckpointError(f"{METADATA} points to {location.relative_path!r}, outside its folder")
    return metadata


class _TensorsOnly(DefaultLoadPlanner):
    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        # Without torch's look at every value for what is on the meta device: it would copy what it does not know.
        self.state_dict, self.original_state_dict = state_dict, state_dict
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        value = self.state_dict[index.fqn]
        if isinstance(value, Rectangles):  # torch's own look-up asks tensors alone
            return value.__get_tensor_shard__(index)
        return super().lookup_tensor(index)

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise BrokenCheckpointError("it holds something that is not a tensor")


def read_state(folder: Path, state: Mapping[str, Tensor | Rectangles], group: dist.ProcessGroup | None = None) -> None:
    """Read a checkpoint into the tensors of `state`, each rank its slices. A collective of `group`; None: no collective.

    Raises:
        BrokenCheckpointError: it lacks a tensor, or has one of another shape.
    """
    stored, slices = read_metadata(folder).state_dict_metadata, dict(state)
    for name, tensor in state.items():
        entry = stored.get(name)
        if not isinstance(entry, TensorStorageMetadata):
            raise BrokenCheckpointError(f"it has no {name}")
        if tuple(entry.size) != tuple(tensor.shape):
            raise BrokenCheckpointError(f"{name} has the shape {tuple(entry.size)}, this run's has {tuple(tensor.shape)}")
    with warnings.catch_warnings():
        # torch warns that it reads without a process group, which is intended here.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        warnings.filterwarnings("ignore", message="torch.distributed is unavailable")
        try:
            load(slices, storage_reader=_Reader(folder), planner=_TensorsOnly(), process_group=group, no_dist=group is None)
        except CheckpointException as error:
            rank, (failure, _) = next(iter(error.failures.items()))
            raise BrokenCheckpointError(f"rank {rank} cannot read it: {type(failure).__name__} {failure}") from error


def read_whole(folder: Path, prefix: str) -> dict[str, Tensor]:
    """Every tensor whose name begins with `prefix`, by its name without the prefix; whole, on the CPU."""
    stored = read_metadata(folder).state_dict_metadata
    whole = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    read_state(folder, dict(whole))
    return {name.removeprefix(prefix): tensor for name, tensor in whole.items()}
