"""Noise on weights for CPUs in numpy, where `compiled.py` finds no compiler; and what that is compared with.

A few rows of blocks at a time, so that all temporaries stay in the processor's cache. Blocks are reduced over their rows first,
which are contiguous: ten times as fast as rows and columns at once.

Shape suffixes: O output rows, I input columns; P rows of blocks, Q columns of blocks, n the side of a block.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quant.noise.draws import rounded_normal_by_key, uniform_by_key

_CHUNK = 1 << 16  # weights

Where = tuple[int, int, int, int, int, int, int, bool]
"""(key, step, row, column, rows of blocks, columns of blocks, side of a block, uniform)"""


def _chunks(where: Where) -> Iterator[tuple[slice, Any]]:
    """Some rows of blocks at a time, and their noise R (P, n, I): int8, or fp32 if uniform."""
    key, step, row, column, rows, columns, block, uniform = where
    draw = uniform_by_key if uniform else rounded_normal_by_key
    at_once = max(1, _CHUNK // (block * block * columns))
    for start in range(0, rows, at_once):
        stop = min(start + at_once, rows)
        noise = draw(key, step, ((stop - start) * block, columns * block), (row + start * block, column))
        yield slice(start, stop), noise.reshape(stop - start, block, -1)


def add(where: Where, weight_OI: Tensor, bits_PQ: Tensor) -> tuple[Tensor, Tensor]:
    """See `quant.noise.add.add_noise`."""
    (rows, columns), block = bits_PQ.shape, where[6]
    weight_PnI = weight_OI.detach().numpy().reshape(rows, block, -1)
    noised_PnI, size_PQ = np.empty_like(weight_PnI), np.exp2(1.0 - bits_PQ.detach().numpy())
    for chunk, noise in _chunks(where):
        weight, size, noised = weight_PnI[chunk], size_PQ[chunk], noised_PnI[chunk]
        largest_PI = np.maximum(weight.max(axis=1), -weight.min(axis=1))
        size *= largest_PI.reshape(-1, columns, block).max(axis=2)
        np.multiply(noise, np.repeat(size, block, axis=1)[:, None], out=noised)
        noised += weight
    return torch.from_numpy(noised_PnI.reshape(weight_OI.shape)), torch.from_numpy(size_PQ)


def bits_gradient(where: Where, gradient_OI: Tensor, size_PQ: Tensor) -> Tensor:
    """See `quant.noise.add.add_noise`."""
    (rows, columns), block = size_PQ.shape, where[6]
    size, gradient_PnI = size_PQ.numpy(), gradient_OI.detach().numpy().reshape(rows, block, -1)
    sum_PQ = np.empty_like(size)
    for chunk, noise in _chunks(where):
        sum_PI = np.einsum("pni,pni->pi", noise.astype(size.dtype, copy=False), gradient_PnI[chunk])
        np.sum(sum_PI.reshape(-1, columns, block), axis=2, out=sum_PQ[chunk])
    return torch.from_numpy(sum_PQ * size * size.dtype.type(-math.log(2.0)))
