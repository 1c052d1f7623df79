"""A rank's part of a tensor as rectangles, where it is not one slice: elements of a flat buffer, or rows of a fused matrix.

torch.distributed.checkpoint writes and reads the rectangles like the slices of any other layout, so a checkpoint does not tell
which engine wrote it.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

Offset = tuple[int, ...]
"""A row and a column, or an index: where a rectangle begins."""


class Rectangles:
    """Parts of a tensor of one or two dimensions: (offset in the whole tensor, view of the values)."""

    def __init__(self, shape: Sequence[int], parts: Sequence[tuple[Offset, Tensor]]) -> None:
        """`shape` is the whole tensor's; there is at least one part."""
        self.shape, self.parts = torch.Size(shape), list(parts)

    @property
    def like(self) -> Tensor:
        """A tensor on the device and of the dtype of the values."""
        return self.parts[0][1]

    def numel(self) -> int:
        """Elements of all parts."""
        return sum(view.numel() for _, view in self.parts)

    def copy_to(self, flat: Tensor) -> None:
        """Copy the values, one part after the other."""
        for (_, source), (_, target) in zip(self.parts, self.backed_by(flat).parts, strict=True):
            target.copy_(source, non_blocking=True)

    def backed_by(self, flat: Tensor) -> "Rectangles":
        """The same parts, with values from `copy_to`."""
        pieces = flat.split([view.numel() for _, view in self.parts])
        return Rectangles(
            self.shape, [(offset, piece.view(view.shape)) for (offset, view), piece in zip(self.parts, pieces, strict=True)]
        )

    # What torch.distributed.checkpoint asks of an object that it saves and loads.

    def __create_write_items__(self, name: str, part: object) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.like)
        return [
            WriteItem(
                index=MetadataIndex(name, torch.Size(chunk.offsets)),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.shape),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(offset), view.shape) for offset, view in self.parts]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return next(view for offset, view in self.parts if torch.Size(offset) == index.offset)


def consecutive(flat: Tensor, shape: Sequence[int], start: int) -> Iterator[tuple[Offset, Tensor]]:
    """The elements `flat` of a tensor, consecutive in row-major order from number `start` on, as up to three rectangles: the
    rest of a row, whole rows, the beginning of a row."""
    assert flat.dim() == 1
    assert start + flat.numel() <= math.prod(shape)
    first, end = start, start + flat.numel()
    if len(shape) == 1:
        yield (first,), flat
        return
    columns = shape[1]
    while first < end:
        row, column = divmod(first, columns)
        if column or end - first < columns:
            rows, width = 1, min(columns - column, end - first)
        else:
            rows, width = (end - first) // columns, columns
        yield (row, column), flat[first - start :][: rows * width].view(rows, width)
        first += rows * width
