"""Adding noise of the size of a rounding step to a weight, and the gradients of that: on CPUs here, on GPUs in `kernels.py`.

Gaussian weight sampling (Ahn & Yoo, arXiv 2505.11170) gives a weight w in a square block of bit width b the noise R Delta:
Delta = max |w| 2^(1 - b) is the step of a rounding to b bits, and casts the sum to the compute dtype. The exponent 1 - b is our
own reading: it makes the noise survive a bf16 addition up to exactly 9 bits, as the paper says. Gradients are ours too, by the
convention of DiffQ (Défossez et al., arXiv 2104.09987): the largest weight counts as a constant, so that the weight has the
gradient G of the noised weight, and the bit width has -ln 2 Delta sum(G R) over its block.

Shape suffixes: O output rows, I input columns; P rows of blocks, Q columns of blocks, n the side of a block.
"""

from typing import Any

import torch
from torch import Tensor

from quant.noise import compiled, in_numpy

# Not `foretrain`: what that has is saved by selective recomputation. Noise is cheaper to draw again than to keep.
_PLACE = "Tensor key, Tensor step, int row, int column, int block, bool uniform"
torch.library.define("foretrain_noise::add", f"(Tensor weight, Tensor bits, {_PLACE}) -> (Tensor, Tensor)")
torch.library.define("foretrain_noise::bits_gradient", f"(Tensor gradient, Tensor size, {_PLACE}) -> Tensor")


def add_noise(
    weight_OI: Tensor, bits_PQ: Tensor, key: Tensor, step: Tensor, offset: tuple[int, int], block: int, *, uniform: bool
) -> Tensor:
    """The weight with noise, in its own dtype; differentiable in weight and bits.

    Args:
        weight_OI: a matrix or a slice of one that begins at `offset`, in whole blocks.
        bits_PQ: the bit width of each block, at least fp32. The sum is computed in its dtype, then cast.
        key: of the parameter's draws (`noise_key`), int64, a scalar.
        step: number of the optimizer step, int64, a scalar.
        offset: row and column of the whole matrix.
        block: side of a block, a multiple of four.
        uniform: R uniform in (-1/2, 1/2) (DiffQ) instead of round(N(0, 1) / 2).

    Saves one number per block for the backward pass, which draws the noise again.
    """
    noised: Tensor = _AddNoise.apply(weight_OI, bits_PQ, key, step, *offset, block, uniform)
    return noised


class _AddNoise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_OI: Tensor, bits_PQ: Tensor, key: Tensor, step: Tensor, *place: Any) -> Tensor:
        noised_OI, size_PQ = torch.ops.foretrain_noise.add(weight_OI.contiguous(), bits_PQ, key, step, *place)
        ctx.save_for_backward(size_PQ, key, step)
        ctx.place = place
        return noised_OI  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient_OI, (size_PQ, key, step) = gradients[0], ctx.saved_tensors
        bits = None
        if ctx.needs_input_grad[1]:
            bits = torch.ops.foretrain_noise.bits_gradient(gradient_OI.contiguous(), size_PQ, key, step, *ctx.place)
        return gradient_OI, bits, None, None, None, None, None, None


@torch.library.impl("foretrain_noise::add", "cpu")
def _add(
    weight_OI: Tensor, bits_PQ: Tensor, key: Tensor, step: Tensor, row: int, column: int, block: int, uniform: bool
) -> tuple[Tensor, Tensor]:
    wide_OI = weight_OI if weight_OI.dtype == bits_PQ.dtype else weight_OI.to(bits_PQ.dtype)
    where = int(key) % (1 << 64), int(step), row, column, *bits_PQ.shape, block, uniform
    functions = compiled.library(bits_PQ.dtype)
    if functions is None:
        noised_OI, size_PQ = in_numpy.add(where, wide_OI, bits_PQ)
    else:
        noised_OI, size_PQ = compiled.add(functions, compiled.Place(*where), wide_OI, bits_PQ.contiguous())
    return noised_OI if weight_OI.dtype == bits_PQ.dtype else noised_OI.to(weight_OI.dtype), size_PQ


@torch.library.impl("foretrain_noise::bits_gradient", "cpu")
def _bits_gradient(
    gradient_OI: Tensor, size_PQ: Tensor, key: Tensor, step: Tensor, row: int, column: int, block: int, uniform: bool
) -> Tensor:
    wide_OI = gradient_OI if gradient_OI.dtype == size_PQ.dtype else gradient_OI.to(size_PQ.dtype)
    where = int(key) % (1 << 64), int(step), row, column, *size_PQ.shape, block, uniform
    functions = compiled.library(size_PQ.dtype)
    if functions is None:
        return in_numpy.bits_gradient(where, wide_OI, size_PQ)
    return compiled.bits_gradient(functions, compiled.Place(*where), wide_OI, size_PQ)


@torch.library.impl("foretrain_noise::add", "cuda")
def _add_on_gpu(*arguments: Any) -> tuple[Tensor, Tensor]:
    from quant.noise import kernels

    return kernels.add(*arguments)


@torch.library.impl("foretrain_noise::bits_gradient", "cuda")
def _bits_gradient_on_gpu(*arguments: Any) -> Tensor:
    from quant.noise import kernels

    return kernels.bits_gradient(*arguments)


@torch.library.register_fake("foretrain_noise::add")
def _add_shapes(weight_OI: Tensor, bits_PQ: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight_OI), torch.empty_like(bits_PQ)


@torch.library.register_fake("foretrain_noise::bits_gradient")
def _bits_gradient_shape(gradient_OI: Tensor, size_PQ: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(size_PQ)
