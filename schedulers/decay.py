"""Shapes of a decay: from 1 where it begins to exactly 0 where it ends.

`x` is the fraction of the decay that is done, from 0 to 1. A warmup runs a shape backwards: x is then the fraction to come.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

ShapeName = Literal[
    "linear",
    "one_minus_sqrt",
    "cosine",
    "square",
    "mirror_cosine",
    "exponential",
    "inverse_proportional",
]
WarmupName = Literal["linear", "cosine", "square", "one_minus_sqrt"]
Shape = Callable[[float], float]


def linear(x: float) -> float:
    """1 - x."""
    return 1.0 - x


def one_minus_sqrt(x: float) -> float:
    """1 - sqrt(x) (Haegele et al., arXiv 2405.18392)."""
    return 1.0 - math.sqrt(x)


def cosine(x: float) -> float:
    """(1 + cos(pi x)) / 2 (Loshchilov & Hutter, arXiv 1608.03983, eq. 5)."""
    return 0.5 * (1.0 + math.cos(math.pi * x))


def square(x: float) -> float:
    """1 - x^2 (Haegele et al., official code)."""
    return 1.0 - x * x


def mirror_cosine(x: float) -> float:
    """The cosine mirrored at the line: 2 (1 - x) - (1 + cos(pi x)) / 2 (Haegele et al., official code)."""
    return 2.0 * linear(x) - cosine(x)


def exponential(x: float, residue: float) -> float:
    """(r^x - r) / (1 - r): r^x, shifted and scaled to end at 0 instead of r = `residue`.

    The Power Scheduler paper (arXiv 2408.13359) decays "exponentially to 0" and prints no formula; this form is ours. MiniCPM's
    0.5^(n / 5000 steps) (arXiv 2404.06395) is r^x with r = 0.5^(steps of decay / 5000).
    """
    return (math.pow(residue, x) - residue) / (1.0 - residue)


def inverse_proportional(x: float, residue: float) -> float:
    """1 / (x (1 / r - 1) + 1), whose inverse is linear, shifted and scaled to end at 0 instead of r = `residue`.

    With r = floor / peak, floor + (peak - floor) times this is the decay of WSD-S, peak / (x (peak / floor - 1) + 1) (Wen et
    al., arXiv 2410.05192). Computed as r (1 - x) / (r + x (1 - r)), which is equal and exactly 0 at the end.
    """
    return residue * (1.0 - x) / (residue + x * (1.0 - residue))


PLAIN: dict[str, Shape] = {shape.__name__: shape for shape in (linear, one_minus_sqrt, cosine, square, mirror_cosine)}
_NEVER_ZERO = {shape.__name__: shape for shape in (exponential, inverse_proportional)}
assert {*PLAIN, *_NEVER_ZERO} == set(get_args(ShapeName))


def shape_of(name: ShapeName, *, start: float, floor: float, residue: float) -> Shape:
    """The named shape, for a decay from `start` to `floor`.

    Two curves never reach zero. They end at r = floor / start, which gives the original curves of their papers. If that is less
    than `residue`, they end at r = `residue`, and shifting and scaling closes the gap to the floor.
    """
    if name in PLAIN:
        return PLAIN[name]
    curve, end = _NEVER_ZERO[name], max(floor / start, residue)
    if end >= 1.0:  # the decay starts on the floor
        return linear
    return lambda x: curve(x, end)
