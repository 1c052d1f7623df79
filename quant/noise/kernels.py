"""Triton kernels for GPUs: noise is drawn, scaled, added and cast in one pass, and drawn again in the backward pass.

The draws are those of `quant.noise.draws`, to the bit. A program handles a square block: it reads the block once, so its
largest weight costs no further pass. bf16 is widened as it is read, because Triton's interpreter computes wrongly with it.

Shape suffixes: O output rows, I input columns; P rows of blocks, Q columns of blocks.
"""

# Triton reads these functions itself: they are not Python that is run, and their arguments have no types to write down.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN202

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from quant.noise import draws

_GAMMA = tl.constexpr(0x9E3779B97F4A7C15)
_MIX1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX2 = tl.constexpr(0x94D049BB133111EB)
_ONE, _TWO = tl.constexpr(draws.ONE), tl.constexpr(draws.TWO)
_ROW_SHIFT, _STEP_SHIFT = tl.constexpr(draws.WORD_BITS), tl.constexpr(draws.ROW_BITS + draws.WORD_BITS)
_MINUS_LN2 = tl.constexpr(-0.6931471805599453)


@triton.jit
def _draws(key, step, first_row, first_column, BLOCK: tl.constexpr):
    """Signed 16-bit draws, int32 (BLOCK, BLOCK), of the block that begins at (first_row, first_column) of the matrix. The
    column is a multiple of four."""
    row = (first_row + tl.arange(0, BLOCK)).to(tl.uint64)
    word = (first_column // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint64)
    counter = (step.to(tl.uint64) << _STEP_SHIFT) | (row[:, None] << _ROW_SHIFT) | word[None, :]
    state = (counter + 1) * tl.full((), _GAMMA, tl.uint64) + key.to(tl.uint64, bitcast=True)
    state = (state ^ (state >> 30)) * tl.full((), _MIX1, tl.uint64)
    state = (state ^ (state >> 27)) * tl.full((), _MIX2, tl.uint64)
    state = state ^ (state >> 31)
    low, high = state.to(tl.uint32), (state >> 32).to(tl.uint32)
    # Column 4 w + 2 i + j has the bits 32 i + 16 j and up of word w.
    first, second = tl.join(low & 0xFFFF, high & 0xFFFF), tl.join(low >> 16, high >> 16)
    draw = tl.reshape(tl.join(first, second), (BLOCK, BLOCK)).to(tl.int32)
    return tl.where(draw >= 32768, draw - 65536, draw)


@triton.jit
def _rounded(draw):
    up = (draw >= _ONE).to(tl.int32) + (draw >= _TWO).to(tl.int32)
    return up - (draw < -_ONE).to(tl.int32) - (draw < -_TWO).to(tl.int32)


@triton.jit
def _noise(key, step, first_row, first_column, WIDE: tl.constexpr, BLOCK: tl.constexpr, UNIFORM: tl.constexpr):
    draw = _draws(key, step, first_row, first_column, BLOCK)
    return (draw.to(WIDE) + 0.5) * (1.0 / 65536.0) if UNIFORM else _rounded(draw).to(WIDE)


@triton.jit
def _places(columns, BLOCK: tl.constexpr):
    """Positions (BLOCK, BLOCK) of this program's block in a matrix of that many columns."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    return row[:, None] * columns + column[None, :]


@triton.jit
def _draw_kernel(key, step, out, rows, columns, first_row, first_column, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    draw = _draws(
        tl.load(key), tl.load(step), first_row + tl.program_id(0) * BLOCK, first_column + tl.program_id(1) * BLOCK, BLOCK
    )
    tl.store(out + row * columns + column, _rounded(draw).to(tl.int8), mask=(row < rows) & (column < columns))


@triton.jit
def _add_kernel(
    weight, bits, key, step, noised, size, columns, first_row, first_column,
    WIDE: tl.constexpr, BLOCK: tl.constexpr, UNIFORM: tl.constexpr,
):  # fmt: skip
    places = _places(columns, BLOCK)
    of_block = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tile = tl.load(weight + places).to(WIDE)
    largest = tl.max(tl.max(tl.abs(tile), axis=1), axis=0)
    block_size = largest * tl.exp2(1.0 - tl.load(bits + of_block).to(WIDE))
    tl.store(size + of_block, block_size)
    row, column = first_row + tl.program_id(0) * BLOCK, first_column + tl.program_id(1) * BLOCK
    noise = _noise(tl.load(key), tl.load(step), row, column, WIDE, BLOCK, UNIFORM)
    tl.store(noised + places, (tile + noise * block_size).to(noised.dtype.element_ty))


@triton.jit
def _sum_kernel(
    gradient, size, key, step, out, columns, first_row, first_column,
    WIDE: tl.constexpr, BLOCK: tl.constexpr, UNIFORM: tl.constexpr,
):  # fmt: skip
    of_block = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    upstream = tl.load(gradient + _places(columns, BLOCK)).to(WIDE)
    row, column = first_row + tl.program_id(0) * BLOCK, first_column + tl.program_id(1) * BLOCK
    noise = _noise(tl.load(key), tl.load(step), row, column, WIDE, BLOCK, UNIFORM)
    total = tl.sum(tl.sum(upstream * noise, axis=1), axis=0)
    tl.store(out + of_block, tl.load(size + of_block).to(WIDE) * total * _MINUS_LN2)


_WIDE = {torch.float32: tl.float32, torch.float64: tl.float64}


def add(
    weight_OI: Tensor, bits_PQ: Tensor, key: Tensor, step: Tensor, row: int, column: int, block: int, uniform: bool
) -> tuple[Tensor, Tensor]:
    """See `quant.noise.add.add_noise`."""
    noised_OI, size_PQ = torch.empty_like(weight_OI), torch.empty_like(bits_PQ)
    where = (weight_OI.shape[1], row, column, _WIDE[bits_PQ.dtype], block, uniform)
    _add_kernel[tuple(bits_PQ.shape)](weight_OI, bits_PQ, key, step, noised_OI, size_PQ, *where)
    return noised_OI, size_PQ


def bits_gradient(
    gradient_OI: Tensor, size_PQ: Tensor, key: Tensor, step: Tensor, row: int, column: int, block: int, uniform: bool
) -> Tensor:
    """See `quant.noise.add.add_noise`."""
    out_PQ = torch.empty_like(size_PQ)
    where = (gradient_OI.shape[1], row, column, _WIDE[size_PQ.dtype], block, uniform)
    _sum_kernel[tuple(size_PQ.shape)](gradient_OI, size_PQ, key, step, out_PQ, *where)
    return out_PQ


def rounded_normal_on_gpu(key: int, step: int, shape: Sequence[int], offset: Sequence[int], device: torch.device) -> Tensor:
    """See `quant.noise.rounded_normal`."""
    (rows, columns), (row, column), block = shape, offset, 32
    skipped = column % 4  # the kernel begins at a whole word
    out = torch.empty(rows, columns + skipped, dtype=torch.int8, device=device)
    key_tensor, step_tensor = signed(key, device), torch.tensor(step, device=device)
    grid = (-(-rows // block), -(-(columns + skipped) // block))
    _draw_kernel[grid](key_tensor, step_tensor, out, rows, columns + skipped, row, column - skipped, block)
    return out[:, skipped:].contiguous()


def signed(key: int, device: torch.device) -> Tensor:
    """A 64-bit key as int64, the only integers of 64 bits that all of torch's operations know."""
    return torch.tensor(key - (1 << 64) if key >= 1 << 63 else key, device=device)
