"""The best run within a budget of compute.

Compute is 6 N D for training and 2 N for every token of inference (Kaplan et al., arXiv 2001.08361, section 2.1; with inference
as in Sardana et al., arXiv 2401.00448).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaling.laws.base.columns import Columns, from_size_and_tokens
from scaling.laws.base.dual import Array

LEAST_RATIO, MOST_RATIO = 1e-2, 1e6
"""Tokens per parameter between which an optimum is looked for."""


@dataclass(frozen=True)
class Budget:
    """FLOPs of training, and of serving where tokens are to be served."""

    flops: float
    served: float = 0.0
    """tokens of inference in the model's life"""

    def size(self, ratio: Any) -> Any:
        """The size that spends the budget at so many tokens per parameter: the root of 6 M N^2 + 2 served N = flops."""
        return self.flops / (self.served + np.sqrt(self.served**2 + 6.0 * ratio * self.flops))

    def least_ratio(self, cap: float | None) -> float:
        """Tokens per parameter at which the size is `cap`: the least for models no larger."""
        if cap is None:
            return 0.0
        return max(0.0, (self.flops - 2.0 * cap * self.served) / (6.0 * cap**2))


@dataclass(frozen=True, kw_only=True)
class BestRuns:
    """The best run for each of several parameter vectors; every field is (vectors,)."""

    parameters: Array
    tokens: Array
    loss: Array | None = None
    """None: the law does not know it"""
    qat_fraction: Array | None = None
    """None: the law knows nothing of quantization"""


def best_ratios(
    value: Callable[[Array, Columns], Array], theta: Array, budget: Budget, cap: float | None = None
) -> tuple[Array, Array]:
    """The tokens per parameter of lowest loss within a budget, and that loss, for each parameter vector.

    Searched on a logarithmic grid, and refined by a parabola through the lowest three.

    Args:
        value: a law's losses (vectors, runs) for parameter vectors and the `SIZE_COLUMNS` of runs.
        theta: the vectors, (vectors, parameters).
        budget: what is spent.
        cap: the most parameters that a model may have.
    """
    least = min(max(LEAST_RATIO, budget.least_ratio(cap)), MOST_RATIO)
    axis = np.linspace(np.log(least), np.log(MOST_RATIO), max(3, round((np.log(MOST_RATIO) - np.log(least)) / 2e-2)))
    if budget.least_ratio(cap) >= MOST_RATIO:  # so small a model takes all the tokens that the budget pays for
        axis = np.log(budget.least_ratio(cap)) + np.arange(3) * 1e-9
    ratio = np.exp(axis)
    size = budget.size(ratio)
    losses = value(theta, from_size_and_tokens(size, ratio * size))
    at = np.argmin(losses, axis=1)
    inner, rows = np.clip(at, 1, len(axis) - 2), np.arange(len(theta))
    left, middle, right = (losses[rows, inner + shift] for shift in (-1, 0, 1))
    bend = left - 2.0 * middle + right
    shift = np.where((at == inner) & (bend > 0), 0.5 * (left - right) / np.where(bend > 0, bend, 1.0), 0.0)
    return ratio[at] * np.exp((axis[1] - axis[0]) * np.clip(shift, -1, 1)), losses.min(axis=1)
