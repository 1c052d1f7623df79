"""Initial weights by (seed, parameter name, global index), written slice by slice.

Every value is a function of the parameter's name and of the element's index in the whole tensor. So a rank fills its own slice
without knowing the layout, and every layout starts from the same weights, bit for bit. Besides the slice, no more than a chunk
for each thread is in memory.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.counter import derive_key, normal

CHUNK = 1 << 15  # elements: the temporaries (about 1.5 MiB of float64 and uint64) stay in the processor's cache


def init_std(name: str, num_layers: int, std: float, mup_width: float | None) -> float | None:
    """Standard deviation of a parameter's initial values; None for a norm, which starts at one; 0 for a bias.

    Projections into the residual stream are scaled by 1 / sqrt(2 x layers), so that the stream's variance does not grow
    with depth (Radford et al., GPT-2, section 2.3).

    Under muP (`mup_width` = hidden_size / base width, else None) all matrices of the blocks have std / sqrt(mup_width); the
    residual multiplier accounts for the depth (Shen et al., arXiv 2408.13359, table 1).
    """
    if name.endswith("norm.weight"):
        return None
    if name.endswith(".bias"):
        return 0.0
    if mup_width is not None:
        return std / math.sqrt(mup_width) if is_inner_matrix(name) else std
    if name.endswith(("attention.output.weight", "ffn.down.weight")):
        return std / math.sqrt(2 * num_layers)
    return std


def is_inner_matrix(name: str) -> bool:
    """Whether a parameter is a matrix of a block: muP scales these with the width, and Muon orthogonalises their updates."""
    return name.startswith("blocks.") and name.endswith(".weight") and not name.endswith("norm.weight")


def fill(local: Tensor, offset: Sequence[int], global_shape: Sequence[int], *, name: str, seed: int, std: float | None) -> None:
    """Write a slice's initial values in place.

    `local` is the contiguous slice that starts at `offset` (one number per dimension) of a tensor of `global_shape`.
    `std` None fills with ones.
    """
    if not std:
        local.fill_(1.0 if std is None else 0.0)
        return
    key = derive_key(seed, "init", name)
    flat = local.view(-1)
    numpy_dtype = np.float64 if local.dtype == torch.float64 else np.float32

    @torch.no_grad()  # of every thread by itself
    def fill_chunk(start: int) -> None:
        stop = min(start + CHUNK, flat.numel())
        values = normal(key, _global_index(start, stop, local.shape, offset, global_shape))
        values *= std
        flat[start:stop].copy_(torch.from_numpy(values.astype(numpy_dtype, copy=False)))

    starts = range(0, flat.numel(), CHUNK)
    threads = min(torch.get_num_threads(), len(starts))
    if threads <= 1:
        for start in starts:
            fill_chunk(start)
        return
    with ThreadPoolExecutor(threads) as pool:  # numpy computes without Python's lock
        for _ in pool.map(fill_chunk, starts):
            pass


def _global_index(
    start: int, stop: int, local_shape: Sequence[int], offset: Sequence[int], global_shape: Sequence[int]
) -> npt.NDArray[np.uint64]:
    """Row-major index in the whole tensor of the slice's elements start..stop (row-major in the slice)."""
    # Trailing dimensions that the slice has whole are contiguous in slice and tensor, so they count as one dimension.
    inner, dims = 1, len(local_shape)
    while dims > 1 and local_shape[dims - 1] == global_shape[dims - 1]:
        dims -= 1
        inner *= local_shape[dims]
    remaining = np.arange(start, stop, dtype=np.uint64)
    index = np.zeros_like(remaining)
    stride = 1
    sizes = [(local_shape[d], offset[d], global_shape[d]) for d in range(dims)]
    local_size, first, global_size = sizes[-1]
    sizes[-1] = (local_size * inner, first * inner, global_size * inner)
    for position, (local_size, first, global_size) in enumerate(reversed(sizes)):
        last = position == len(sizes) - 1
        coordinate = remaining if last else remaining % np.uint64(local_size)
        index += (coordinate + np.uint64(first)) * np.uint64(stride)
        if not last:
            remaining = remaining // np.uint64(local_size)
        stride *= global_size
    return index
