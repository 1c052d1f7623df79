"""Tables of very many runs: what takes hundreds of refits, or memory for each pair of a draw and a run, works on a sample.

The law itself is fitted to all of them. Intervals from the sample are as narrow as all runs make them: every draw counts as
many runs as there are in all, over those of the sample (the bag of little bootstraps: Kleiner, Talwalkar, Sarkar and Jordan,
Journal of the Royal Statistical Society B 76, 2014).
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from scaling.fit.result import Fit

SAMPLE = 10_000
"""Points of runs; a table of no more is worked on whole."""
SEARCHED = 2_000
"""Points on which the starts of a larger table are compared; the best goes on with all."""
_ENOUGH = 1_000  # whole runs that stand for all others


def searched_rows(points: int, seed: int) -> npt.NDArray[np.intp] | None:
    """The rows on which starts are compared, ascending; None where these are all."""
    if points <= SAMPLE:
        return None
    return np.sort(np.random.default_rng(seed).choice(points, SEARCHED, replace=False))


def _rows(labels: npt.NDArray[np.intp], seed: int) -> npt.NDArray[np.intp] | None:
    """Which rows stand for all, ascending; None where all do. `labels` say which run a row is a point of.

    Whole runs where that leaves many of them; else some points of every run, so that no run's luck is lost.
    """
    rows = len(labels)
    if rows <= SAMPLE:
        return None
    random, runs = np.random.default_rng(seed), int(labels.max()) + 1
    count = runs * SAMPLE // rows
    if count < _ENOUGH:
        return np.sort(random.choice(rows, SAMPLE, replace=False))
    chosen = np.zeros(runs, dtype=bool)
    chosen[random.choice(runs, count, replace=False)] = True
    return np.flatnonzero(chosen[labels])


def sample_of(fit: Fit, seed: int) -> Fit:
    """The fit with a sample of its runs; itself where they are few. The optimum stays that of all."""
    rows = _rows(fit.labels, seed)
    if rows is None:
        return fit
    return replace(fit, runs=fit.runs.iloc[rows].reset_index(drop=True), weights=fit.weights[rows])


def remark(points: int, bootstrap: int) -> list[str]:
    """What is said of a table that is worked on in part."""
    if points <= SAMPLE:
        return []
    what = "intervals, roll-outs and trends" if bootstrap else "roll-outs and trends"
    return [
        f"{points:,} points are many: the law is fitted to all, from the best of starts on {SEARCHED:,} drawn at random; "
        f"{what} come from {SAMPLE:,} drawn at random"
    ]
