"""Why a fitted law should not be believed: it leaves most differences unexplained, it misses its own largest runs, or what it
leaves is no noise but a trend.
"""

from collections.abc import Iterable

import numpy as np

from scaling.fit.coordinates import coordinates
from scaling.fit.intervals import Labels
from scaling.fit.result import Fit, RollOut, metrics
from scaling.laws.base.dual import Array

POOR_R2 = 0.9
MISSED = 2.0
"""How many times the miss of a roll-out may be what noise and uncertain parameters explain (root mean squares)."""
WORTH, BENT = 0.01, 0.002
"""A miss, or a trend, below this share of the target is none."""
_PARTS, _PERMUTATIONS, _CHANCE, _SHARE = 3, 999, 0.003, 0.2
_FEWEST = 12  # runs, for three parts that say something


def doubts(fit: Fit, sample: Fit | None = None) -> list[str]:
    """Sentences for somebody who wants to use the fit; the gravest first. Trends are looked for in a `sample` of many runs."""
    return [*_poor(fit), *_missed(fit), *_trends(sample or fit)]


def first_doubts(fits: Iterable[Fit]) -> list[str]:
    """What must be said before anything that is computed from fits: of each the gravest doubt, loss fits behind others too."""
    known = {id(fit): fit for one in fits for fit in (one, one.chain) if fit is not None}
    return [f"Doubt this {fit.law.name} fit: {fit.doubts[0]}." for fit in known.values() if fit.doubts]


def _poor(fit: Fit) -> list[str]:
    r2 = metrics(fit)["r2"]
    if not r2 < POOR_R2 or len(fit.runs) <= fit.rank:
        return []
    what = "optima" if fit.law.optimum_of else "runs"
    if r2 < 0:
        return [f"the law does not describe these {what}: their mean would fit better (R2 {r2:.3g})"]
    return [
        f"the law explains {100 * r2:.0f} % of the differences between these {what} (R2 {r2:.2f}): little is left for forecasts"
    ]


def excess(one: RollOut) -> float:
    """The root mean square miss of a roll-out over what is expected of a true law."""
    return float(np.sqrt(one.squared / one.expected)) if one.expected > 0 else float("inf")


def furthest(fit: Fit) -> list[RollOut]:
    """In every direction the roll-out that leaves out the fewest runs: that of the very largest."""
    return list({one.column: one for one in sorted(fit.roll_outs, key=lambda one: -one.runs)}.values())


def worst(fit: Fit) -> RollOut | None:
    """The roll-out of the very largest runs that misses most; None where none misses much."""
    far = [one for one in furthest(fit) if excess(one) > MISSED and abs(one.miss) > WORTH]
    return max(far, key=excess, default=None)


def _missed(fit: Fit) -> list[str]:
    one = worst(fit)
    if one is None:
        return []
    side, where = "above" if one.miss > 0 else "below", one.column.replace("_", " ")
    return [
        f"fitted to the runs up to {one.limit:.3g} {where}, the law misses the {one.runs} beyond: they lie "
        f"{100 * abs(one.miss):.2g} % {side} its forecast, {excess(one):.1f} times what noise explains. "
        "Expect the same of runs beyond these"
    ]


def _trends(fit: Fit) -> list[str]:
    """Directions along which the law is off in one way for the smallest runs and in another for the largest."""
    labels = fit.labels
    count = labels.max() + 1
    if count < _FEWEST or len(fit.runs) <= fit.rank:
        return []
    off = fit.target / fit.fitted - 1.0
    size = np.bincount(labels)
    random = np.random.default_rng(0)
    found = []
    for name, place in coordinates(fit.columns).items():
        middle = np.bincount(labels, place) / size
        if np.abs(place - middle[labels]).max() > 1e-6 * max(1.0, np.abs(place).max()):
            continue  # points of one run differ in it: their noise goes together, and looks like a trend
        parts = np.digitize(middle, np.quantile(middle, np.arange(1, _PARTS) / _PARTS), right=True)
        means, share, chance = _explained(np.bincount(labels, off) / size, parts, random)
        if chance <= _CHANCE and share >= _SHARE and np.abs(means).max() > BENT:
            found.append((share, name, means))
    return [_bend(name, means) for _, name, means in sorted(found, reverse=True)[:1]]


def _explained(values: Array, parts: Labels, random: np.random.Generator) -> tuple[Array, float, float]:
    """Means of the parts, the share of the variance that lies between them, and how often chance alone makes it as large."""
    sizes = np.bincount(parts, minlength=_PARTS)
    if sizes.min() < 2:
        return np.zeros(_PARTS), 0.0, 1.0
    shuffled = random.permuted(np.repeat(values[None], _PERMUTATIONS, axis=0), axis=1)
    inside = np.stack([parts == part for part in range(_PARTS)], axis=1) / sizes

    def between(rows: Array) -> Array:
        return np.asarray(np.sum(sizes * (rows @ inside - values.mean()) ** 2, axis=1) / (len(values) * values.var()))

    share = float(between(values[None])[0])
    return values @ inside, share, float((1 + np.sum(between(shuffled) >= share)) / (1 + _PERMUTATIONS))


def _bend(name: str, means: Array) -> str:
    words = [f"{100 * abs(mean):.2g} % too {'low' if mean > 0 else 'high'}" for mean in means]
    return (
        f"what the law leaves is no noise but goes with {name.replace('_', ' ')}: it is {words[0]} for the smallest third, "
        f"{words[1]} in the middle, {words[2]} for the largest"
    )
