"""Roll-outs: the law, fitted without its largest runs, forecasts them. Their misses say how far off the law itself is.

Noise and uncertain parameters explain some of a miss. The rest is the law's own error. It is taken to be a random walk away
from the fitted runs: its variance grows in proportion to the logarithmic distance beyond them, and widens forecasts out there.
Rolling origins: Tashman, International Journal of Forecasting 16, 2000.
"""

import numpy as np
import numpy.typing as npt

from scaling.fit.coordinates import Coordinates, beyond, coordinates, in_units
from scaling.fit.intervals import ranks, visible
from scaling.fit.result import Fit, RollOut
from scaling.fit.solver import solve
from scaling.laws.base.dual import Array

Mask = npt.NDArray[np.bool_]
DOWNWARDS = ("loss",)
"""Directions in which forecasts go to smaller numbers."""
_LEVELS, _SHARES = 9, (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
EXPLAINED = 2.5
"""Misses whose mean square is so many times the expected one are still explained by noise and uncertain parameters: they go
together, so that chance alone often makes them a little larger. Chosen, like `DEGREES` and the growth with the distance, by
coverage of public studies and of simulated laws that are only nearly true (docs/benchmarks/scaling_laws.md)."""
DEGREES = 8
"""Of Student's t: four directions, with two roll-outs or so each that do not repeat each other."""
_ABSOLUTE = np.pi / 2.0  # variance of a median over that of a mean
_ROOT = 1.4826  # median absolute deviation to standard deviation
_SAME = 0.05  # values whose logarithms are no further apart are one level
_FEWEST = 0.3  # of the runs, that a roll-out may be fitted to


def roll_outs(fit: Fit, optimum: Array) -> tuple[RollOut, ...]:
    """Every roll-out of a fit whose optimum, in solver units, is given: all refits at once, each from the optimum."""
    columns, labels = fit.columns, fit.labels
    places = coordinates(columns)
    fewest = max(_FEWEST * len(labels), fit.rank + 2)
    cuts = [(name, keep) for name, place in places.items() for keep in _cuts(name, place)]
    cuts = [cut for cut in cuts if cut[1].sum() >= fewest and len(np.unique(labels[cut[1]])) >= min(3, labels.max() + 1)]
    if not cuts or fit.rank == 0 or len(fit.runs) <= fit.rank:
        return ()
    kept = np.array([keep for _, keep in cuts], dtype=np.float64)
    start = visible(fit.law, optimum, fit.jacobian(), frozenset(fit.fixed), float(np.sqrt(np.mean(fit.residuals**2))))
    starts = np.repeat(start[None], len(cuts), axis=0)
    refits = solve(fit.law, fit.objective, columns, fit.target, starts, weights=kept * fit.weights, fixed=frozenset(fit.fixed))
    free = tuple(index for index, name in enumerate(fit.law.names) if name not in fit.fixed)
    forecasts, slopes = fit.law.value_and_jacobian(refits.solver, columns, free)
    slopes = slopes / forecasts[:, None, :] if fit.objective.log else slopes
    good = (ranks(fit.jacobian(), kept) >= fit.rank) & np.isfinite(slopes).all(axis=(1, 2)) & np.isfinite(forecasts).all(axis=1)
    noise = _square(fit.residuals) * len(labels) / (len(labels) - fit.rank)
    # Points of one run go together at worst, and Huber's loss, nearly the absolute one, is less precise than least squares.
    more = len(labels) / (labels.max() + 1) * (_ABSOLUTE if fit.objective.name == "huber-log" else 1.0)
    return tuple(
        _roll_out(fit, places, name, keep, forecasts[index], noise, more * _uncertain(slopes[index].T, keep))
        for index, (name, keep) in enumerate(cuts)
        if good[index]
    )


def _uncertain(slopes: Array, keep: Mask) -> float:
    """The mean variance of forecasts by the kept runs, of the others, for noise of variance 1; slopes are (runs, free)."""
    scaled = slopes / np.maximum(np.linalg.norm(slopes[keep], axis=0), 1e-300)
    inverse = np.linalg.pinv(scaled[keep].T @ scaled[keep], rcond=1e-9)
    return float(np.mean(np.sum((scaled[~keep] @ inverse) * scaled[~keep], axis=1)))


def _cuts(name: str, place: Array) -> list[Mask]:
    """Which runs lie below a limit on a direction: after every level, or at shares of many different values."""
    place = -place if name in DOWNWARDS else place
    order = np.sort(place)
    ends = order[np.r_[np.diff(order) > _SAME, True]]
    limits = np.quantile(place, _SHARES) if len(ends) > _LEVELS else ends[:-1]
    chosen = [place <= limit + 1e-9 for limit in np.unique(limits)]
    return [keep for keep in chosen if not keep.all()]


def _roll_out(fit: Fit, places: Coordinates, name: str, keep: Mask, forecast: Array, noise: float, uncertain: float) -> RollOut:
    target = fit.target[~keep]
    distances = beyond(
        {axis: place[~keep] for axis, place in places.items()}, {axis: place[keep] for axis, place in places.items()}
    )
    limit = np.min(places[name][keep]) if name in DOWNWARDS else np.max(places[name][keep])
    return RollOut(
        column=name,
        limit=in_units(name, float(limit), places),
        runs=int((~keep).sum()),
        miss=float(np.median(target / forecast[~keep] - 1.0)),
        beyond=float(distances.max()),
        squared=_square(fit.objective.residuals(forecast[~keep], target)),
        expected=noise * (1.0 + uncertain),
        distance=float(np.mean(distances)),
    )


def _square(values: Array) -> float:
    """The mean square of noise about zero, from the median size of it: a few outliers are not the law's error."""
    return float((_ROOT * np.median(np.abs(values))) ** 2)


def drift(fit: Fit, seed: int) -> Array | None:
    """Draws of the law's own error one unit of distance out, in the objective's residuals; None without roll-outs or draws.

    The part of each roll-out's mean square miss that exceeds `EXPLAINED` times the expected one, over the mean distance, is
    averaged within each direction (where roll-outs that go far and expect little count more), and then over directions.
    The root is the scale of Student-t draws of `DEGREES` degrees.
    """
    count = len(fit.draws.theta)
    if not count or not fit.roll_outs:
        return None
    directions: dict[str, list[tuple[float, float]]] = {}
    for one in fit.roll_outs:
        if one.distance > 0 and one.expected > 0:
            excess = max(0.0, one.squared - EXPLAINED * one.expected) / one.distance
            directions.setdefault(one.column, []).append((excess, one.distance / one.expected))
    if not directions:
        return None
    squares = [_weighted(pairs) for pairs in directions.values()]
    scale = float(np.sqrt(np.mean(squares)))
    random = np.random.default_rng([seed, count])  # noise of the same seed must not go hand in hand
    return np.asarray(scale * random.standard_t(DEGREES, size=count))


def _weighted(pairs: list[tuple[float, float]]) -> float:
    """The mean of first numbers, weighted by the second."""
    values, weights = np.array(pairs).T
    return float(np.average(values, weights=weights))
