"""A rank's part of a tensor that is divided by elements, not by rows or columns, as ZeRO's flat buffers are."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


class FlatPart:
    """Consecutive elements of a whole tensor, in row-major order: those from `start` on, which are `flat`.

    It is up to three rectangles: the rest of a row, whole rows, the beginning of a row. Each is a view of `flat`, and
    torch.distributed.checkpoint writes and reads them like the slices of any other layout.
    """

    def __init__(self, flat: Tensor, shape: tuple[int, ...], start: int) -> None:
        """`shape` is the whole tensor's, of one or two dimensions."""
        assert flat.dim() == 1
        assert len(shape) in (1, 2)
        assert start + flat.numel() <= math.prod(shape)
        self.flat, self.shape, self.start = flat, torch.Size(shape), start

    def rectangles(self) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """(offset in the whole tensor, view of the elements), in order."""
        first, end = self.start, self.start + self.flat.numel()
        if len(self.shape) == 1:
            yield (first,), self.flat
            return
        columns = self.shape[1]
        while first < end:
            row, column = divmod(first, columns)
            if column or end - first < columns:
                rows, width = 1, min(columns - column, end - first)
            else:
                rows, width = (end - first) // columns, columns
            yield (row, column), self.flat[first - self.start :][: rows * width].view(rows, width)
            first += rows * width

    def with_values(self, flat: Tensor) -> "FlatPart":
        """The same part of a tensor, with other values."""
        return FlatPart(flat, tuple(self.shape), self.start)

    # What torch.distributed.checkpoint asks of an object that it saves and loads.

    def __create_write_items__(self, name: str, part: object) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(name, torch.Size(chunk.offsets)),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=chunk, properties=TensorProperties.create_from_tensor(self.flat), size=self.shape
                ),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(offset), view.shape) for offset, view in self.rectangles()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return next(view for offset, view in self.rectangles() if torch.Size(offset) == index.offset)
