"""Which cheap runs would sharpen a forecast: a ladder below a planned run."""

from dataclasses import dataclass

import numpy as np

from scaling.fit.result import Fit
from scaling.laws.base.columns import from_size_and_tokens
from scaling.laws.base.dual import Array

MOST_RUNS = 6
WORTH = 0.1
"""A ladder that narrows the forecast by a smaller share is not proposed."""
_RATIOS = np.geomspace(10.0, 640.0, 7)  # below 10 tokens per parameter laws are known to break


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Cheap runs that would narrow the forecast."""

    parameters: Array
    tokens_per_parameter: Array
    before: float
    """half the width of the law's 95 % interval at the planned run"""
    after: float
    """the same, expected after the runs"""


def ladder(fit: Fit, parameters: float, tokens: float, budget: float) -> Ladder:
    """Runs that together cost `budget` FLOPs at most and narrow the forecast of a planned run the most, chosen one by one.

    Linearised: the forecast's variance is g' (J'J)^-1 g, g the forecast's gradient and J the Jacobian of the runs (c-optimal
    design; Atkinson and Donev, Optimum Experimental Designs, 1992). `after` scales the draws' interval by the ratio of roots.
    Without a run where none, or all together, are `WORTH` it.
    """
    goal = from_size_and_tokens(np.array([parameters]), np.array([tokens]))
    jacobian = fit.jacobian()
    information = jacobian.T @ jacobian
    information += 1e-12 * np.diag(np.diag(information))
    gradient = fit.gradient(goal)[0]
    candidates = _candidates(fit, parameters)
    rows = fit.gradient(candidates)
    first = variance = float(gradient @ np.linalg.solve(information, gradient))
    chosen: list[int] = []
    left = budget
    for number in range(MOST_RUNS):
        share = left / min(2, MOST_RUNS - number)  # one run may take half of what is left
        allowed = np.setdiff1d(np.flatnonzero(candidates["flops"] <= share), chosen)
        if not len(allowed):
            break
        solved = np.linalg.solve(information, gradient)
        reach = np.linalg.solve(information, rows[allowed].T)
        gain = (rows[allowed] @ solved) ** 2 / (1.0 + np.sum(rows[allowed] * reach.T, axis=1))
        pick = int(allowed[np.argmax(gain)])
        if gain.max() < 0.01 * variance:
            break
        information += np.outer(rows[pick], rows[pick])
        variance -= float(gain.max())
        left -= float(candidates["flops"][pick])
        chosen.append(pick)
    forecast = fit.predict(goal)
    before = float(forecast.law_high[0] - forecast.law_low[0]) / 2.0
    after = before * float(np.sqrt(max(variance, 0.0) / first))
    if not after < (1.0 - WORTH) * before:
        chosen, after = [], before
    return Ladder(
        parameters=candidates["parameters"][chosen],
        tokens_per_parameter=candidates["tokens_per_parameter"][chosen],
        before=before,
        after=after,
    )


def _candidates(fit: Fit, largest: float) -> dict[str, Array]:
    """Sizes a factor of two apart, from the smallest fitted to the planned one, at every ratio."""
    smallest = float(fit.runs["parameters"].min()) if "parameters" in fit.runs.columns else largest / 1e3
    steps = 1 + max(1, round(np.log2(max(largest / smallest, 1.0))))
    size, ratio = np.meshgrid(np.geomspace(min(smallest, largest), largest, steps), _RATIOS)
    return from_size_and_tokens(size.ravel(), (size * ratio).ravel())
