"""Casting weights to floats of 4 to 8 bits that share powers of two as scales, as OCP Microscaling Formats (MX) 1.0 do."""

import math

import torch
from torch import Tensor

from common.bits import FloatFormat

_SCALES = (-127, 127)
"""exponents of a scale, which has 8 bits"""


def cast(weight_OI: Tensor, form: FloatFormat, block: int) -> Tensor:
    """The nearest values, in the dtype of the weight; `block` consecutive columns, which must divide a row, share a scale.

    The scale is 2^(floor(log2 max |w|) - e), where e is the exponent of the format's largest number; what is larger than that
    number times the scale becomes it (MX 1.0, section 6.3). Halves round to even.
    """
    assert weight_OI.shape[-1] % block == 0, f"{weight_OI.shape[-1]} columns in blocks of {block}"
    wide_OGC = weight_OI.double().unflatten(-1, (-1, block))
    largest_OG1 = wide_OGC.abs().amax(dim=-1, keepdim=True)
    exponent = _floor_log2(largest_OG1) - math.floor(math.log2(form.largest))
    scale_OG1 = torch.ldexp(torch.ones_like(largest_OG1), exponent.clamp(*_SCALES))
    ratio_OGC = wide_OGC / scale_OG1
    # Neighbouring numbers of a binade, or of the subnormal ones below the smallest, are this far apart.
    spacing = _floor_log2(ratio_OGC).clamp(min=1 - form.bias) - form.mantissa_bits
    spacing_OGC = torch.ldexp(torch.ones_like(ratio_OGC), spacing)
    nearest_OGC: Tensor = (ratio_OGC / spacing_OGC).round_().mul_(spacing_OGC).clamp_(-form.largest, form.largest)
    return nearest_OGC.mul_(scale_OG1).flatten(-2).to(weight_OI.dtype)


def _floor_log2(size: Tensor) -> Tensor:
    """floor(log2 |x|), exactly; for 0 as for 1/2."""
    exponent: Tensor = torch.frexp(size).exponent
    return exponent - 1
