"""What could be trained, and a plan made of it.

A model of N parameters at B bits takes N B / 8 bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scaling.laws.base.budget import Budget
from scaling.laws.base.columns import FULL_BITS

GIB = 2.0**30


def most_parameters(memory_gib: float | None, bits: float | None) -> float | None:
    """How many parameters of so many bits fit into the memory; None: as many as one likes."""
    return None if memory_gib is None else memory_gib * GIB * 8.0 / (bits or FULL_BITS)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Something that could be trained."""

    name: str
    parameters: float
    tokens: float
    loss: float | None = None
    low: float | None = None
    high: float | None = None
    cost: float | None = None
    """loss above the best choice's of its table"""
    wasted: float | None = None
    """share of the compute that the compute-optimal run would save at this loss"""
    bits: float | None = None
    """None: not quantized"""
    qat_fraction: float | None = None
    memory_gib: float | None = None
    """of the weights"""
    error: float | None = None
    learning_rate: float | None = None
    learning_rate_low: float | None = None
    learning_rate_high: float | None = None
    far: tuple[str, ...] = ()
    """columns in which it lies far outside the fitted runs"""

    @property
    def flops(self) -> float:
        """Of training."""
        return 6.0 * self.parameters * self.tokens


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer to one budget."""

    budget: Budget
    optimum: Choice
    parameters_range: tuple[float, float] | None
    """95 % interval of the best size"""
    near: Choice | None = None
    """the best run at tokens per parameter near those of the fitted runs, where the optimum's lie far from them"""
    alternatives: tuple[Choice, ...] = ()
    widths: tuple[Choice, ...] = ()
    ladder: tuple[Choice, ...] = ()
    ladder_before: float | None = None
    """half the width of the law's 95 % interval at the optimum; `ladder_after`: expected after the ladder's runs"""
    ladder_after: float | None = None
    no_ladder: str = ""
    """why there is none"""
    doubts: tuple[str, ...] = ()
    """why a fit that it rests on should not be believed"""
    warnings: tuple[str, ...] = ()
    context: Mapping[str, Any] = field(default_factory=dict)
    memory_gib: float | None = None
    batch_tokens: float | None = None
    """as it was asked for"""
