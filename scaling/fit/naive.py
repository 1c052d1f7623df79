"""What a forecast without a law says: a plane in logarithms, through the nearest runs. A law should do better than that."""

import numpy as np

from scaling.laws.base.columns import Columns
from scaling.laws.base.dual import Array

_SHARE = 1 / 3
"""of the runs, those nearest to what is forecast"""
_EACH = 2
"""of them for each number of the plane, at least"""


def naive(columns: Columns, target: Array, wanted: Columns) -> Array:
    """Forecasts (wanted runs,) of log target, linear in the logarithms of what a law takes, by the runs nearest to all of them.

    NaN where there are too few runs. Directions that the nearest runs do not vary in are left flat (the shortest solution).
    """
    names = list(columns)
    if not all((np.asarray(columns[name]) > 0).all() for name in names) or not (target > 0).all():
        return np.full(len(np.atleast_1d(wanted[names[0]])), np.nan)
    known, asked = (
        np.log(np.stack([np.asarray(table[name], dtype=float) for name in names], axis=1)) for table in (columns, wanted)
    )
    distance = np.linalg.norm(known - asked.mean(axis=0), axis=1)
    fewest = _EACH * (len(names) + 1)
    if len(known) < fewest:
        return np.full(len(asked), np.nan)
    nearest = np.argsort(distance, kind="stable")[: max(fewest, round(_SHARE * len(known)))]
    middle = known[nearest].mean(axis=0)
    plane = np.column_stack([np.ones(len(nearest)), known[nearest] - middle])
    numbers, *_ = np.linalg.lstsq(plane, np.log(target[nearest]), rcond=1e-6)
    return np.asarray(np.exp(numbers[0] + (asked - middle) @ numbers[1:]))
