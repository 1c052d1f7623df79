"""Quantizers of 1 to 8 bits with a learned scale: rounding weights to the nearest of a few values, and its gradients.

The quantizers are ParetoQ's (Liu et al., arXiv 2502.02631, by its published code), which compute-optimal QAT (arXiv
2509.22935) uses: elastic binary at 1 bit, stretched elastic quantization (SEQ) at 1.58 and 2, learned step size (LSQ,
Esser et al., arXiv 1902.08153) at 3 and 4. That code stops at 4 bits; LSQ at 6 and 8 is our choice.

A weight w with scale a becomes a (n + shift) / slope, where the integer n = round(slope clip(w / a, low, high) - shift). Halves
round to even. At 1 bit n is 0 if w >= 0, else -1: zero counts as positive, or there would be three values.

Everything is computed in fp32 (fp64 if the scale is fp64), for weights of any dtype.

Shape suffixes: O output rows, I input columns, G groups of columns in a row, C columns of a group.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Family = Literal["elastic_binary", "seq", "lsq"]


@dataclass(frozen=True)
class Levels:
    """The values that a weight may take, in units of its scale: (integer + shift) / slope, from `lowest` to `highest`."""

    family: Family
    lowest: int
    highest: int
    slope: float
    shift: float
    low: float
    """w / scale is clipped to [low, high] before it is rounded; outside, the weight has no gradient"""
    high: float
    largest: int
    """Qp: the largest value in units of the scale, rounded up; the scale's gradient and initial value are divided by it"""

    @property
    def count(self) -> int:
        """Number of values."""
        return self.highest - self.lowest + 1


def _lsq(bits: int) -> Levels:
    half = 2 ** (bits - 1)
    return Levels("lsq", -half, half - 1, 1.0, 0.0, float(-half), float(half - 1), half - 1)


LEVELS: dict[float, Levels] = {
    1.0: Levels("elastic_binary", -1, 0, 0.5, 0.5, -1.0, 1.0, 1),
    1.58: Levels("seq", -1, 1, 1.5, 0.0, -0.99, 0.99, 1),
    2.0: Levels("seq", -2, 1, 2.0, 0.5, -0.99, 0.99, 1),
    **{float(bits): _lsq(bits) for bits in (3, 4, 6, 8)},
}
"""Bits -> levels."""

# A group's largest weight, which sets its initial scale, lies on the border up to rounding errors, and must count as inside.
_ON_THE_BORDER = 1.0 + 1e-6


def integers(weight_OGC: Tensor, scale_OG1: Tensor, levels: Levels) -> Tensor:
    """The integers n of weights, as floating-point numbers. Infinite weights get the outermost level."""
    return _round_clipped((weight_OGC / scale_OG1).clamp_(levels.low, levels.high), levels)


def _round_clipped(ratio_OGC: Tensor, levels: Levels) -> Tensor:
    """The integers of clipped ratios. Overwrites the ratios."""
    if levels.family == "elastic_binary":
        return ratio_OGC.ge(0.0).to(ratio_OGC.dtype).sub_(1.0)
    if levels.slope != 1.0:
        ratio_OGC.mul_(levels.slope)
    if levels.shift != 0.0:
        ratio_OGC.sub_(levels.shift)
    return ratio_OGC.round_()


def values(integers_OGC: Tensor, scale_OG1: Tensor, levels: Levels) -> Tensor:
    """The weights that integers stand for. Overwrites the integers."""
    return _in_units(integers_OGC, levels).mul_(scale_OG1)


def _in_units(integers_OGC: Tensor, levels: Levels) -> Tensor:
    if levels.shift != 0.0:
        integers_OGC.add_(levels.shift)
    return integers_OGC.div_(levels.slope) if levels.slope != 1.0 else integers_OGC


def first_scale(weight_OI: Tensor, levels: Levels, groups: int) -> Tensor:
    """The initial scales, shape (O, G), in at least fp32.

    Elastic binary: the mean of |w|. SEQ: its maximum. LSQ: its maximum / largest level (all as in ParetoQ's code). Weights
    that are not finite count as zero.
    """
    wide = torch.promote_types(weight_OI.dtype, torch.float32)
    size_OGC = weight_OI.to(wide).abs().unflatten(1, (groups, -1))
    size_OGC = torch.where(size_OGC.isfinite(), size_OGC, 0.0)
    return size_OGC.mean(dim=-1) if levels.family == "elastic_binary" else size_OGC.amax(dim=-1) / levels.largest


def floored(scale: Tensor, floor: float) -> Tensor:
    """The scale that the forward pass uses: at least `floor`, so it never divides by a collapsed scale."""
    return scale.clamp(min=floor)


def fake_quantize(weight_OI: Tensor, scale_OG: Tensor, bits: float, floor: float, numel: int | None = None) -> Tensor:
    """The weight's nearest levels, in its own dtype and shape; differentiable in weight and scale.

    Each of a row's G scales applies to I / G consecutive columns. If `weight_OI` is a part of a matrix, `numel` is the
    number of elements of the whole.

    With upstream gradient g, u = w / a and v = the value in units of a: the gradient of the weight is g if low <= u <= high,
    else 0 (clipped straight-through). That of the scale is g (v - u) inside, g v outside, summed over its weights (1 bit: g v
    everywhere), times 1 / sqrt(numel largest) (LSQ, section 2.2; ParetoQ's code). These are the derivatives of the forward pass
    if rounding counts as adding a constant. One departure from that code: outside the range at 1.58 bits, where v = +-2/3, it
    has +-1; the derivative is v. The gradient passes the floor unchanged, so that a scale below it can grow back.
    """
    factor = 1.0 / math.sqrt((numel or weight_OI.numel()) * LEVELS[bits].largest)
    quantized: Tensor = _FakeQuantize.apply(weight_OI, scale_OG, bits, floor, factor)
    return quantized


class _FakeQuantize(torch.autograd.Function):
    """Saves only the weight and the scale; makes few passes over the weight, most of them in place."""

    @staticmethod
    def forward(ctx: Any, weight_OI: Tensor, scale_OG: Tensor, bits: float, floor: float, factor: float) -> Tensor:
        ctx.save_for_backward(weight_OI, scale_OG)
        ctx.bits, ctx.floor, ctx.factor = bits, floor, factor
        levels, scale_OG1 = LEVELS[bits], floored(scale_OG, floor)[..., None]
        weight_OGC = weight_OI.to(scale_OG.dtype).unflatten(1, (scale_OG.shape[1], -1))
        return values(integers(weight_OGC, scale_OG1, levels), scale_OG1, levels).flatten(1).to(weight_OI.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight_OI, scale_OG = ctx.saved_tensors
        levels, scale_OG1 = LEVELS[ctx.bits], floored(scale_OG, ctx.floor)[..., None]
        weight_OGC = weight_OI.to(scale_OG.dtype).unflatten(1, (scale_OG.shape[1], -1))
        upstream_OGC = gradients[0].to(scale_OG.dtype).unflatten(1, (scale_OG.shape[1], -1))
        ratio_OGC = weight_OGC / scale_OG1
        # hardtanh's backward computes the mask and the product in one pass; it excludes the borders.
        low, high = levels.low * _ON_THE_BORDER, levels.high * _ON_THE_BORDER
        weight_gradient_OGC = torch.ops.aten.hardtanh_backward(upstream_OGC, ratio_OGC, low, high)
        ratio_OGC.clamp_(levels.low, levels.high)  # before the product: zero times infinity is NaN
        straight_OGC = ratio_OGC * weight_gradient_OGC if levels.family != "elastic_binary" else None
        terms_OGC = _in_units(_round_clipped(ratio_OGC, levels), levels).mul_(upstream_OGC)
        if straight_OGC is not None:
            terms_OGC.sub_(straight_OGC)
        scale_gradient_OG = terms_OGC.sum(dim=-1).mul_(ctx.factor)
        return weight_gradient_OGC.flatten(1).to(weight_OI.dtype), scale_gradient_OG, None, None, None


def fake_quantize_tokens(hidden: Tensor, largest: Tensor | None = None) -> Tensor:
    """Activations (..., features) rounded to signed 8-bit integers times a scale per token: the token's max |x| / 127.

    Symmetric and dynamic, as in LLM-QAT (Liu et al., arXiv 2305.17888, section 3.3); the gradient passes straight through, and
    nothing is clipped. `largest` (..., 1) is the token's max |x|; needed if `hidden` has only some of its features.
    """
    token_largest = hidden.detach().abs().amax(dim=-1, keepdim=True) if largest is None else largest
    rounded: Tensor = _RoundTokens.apply(hidden, token_largest)
    return rounded


class _RoundTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, largest: Tensor) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        scale = (largest.to(wide) / 127.0).clamp_(min=torch.finfo(wide).tiny)  # a token of zeros stays zero
        return (hidden.to(wide) / scale).round_().mul_(scale).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None
