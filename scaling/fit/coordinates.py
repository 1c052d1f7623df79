"""Where runs lie, and how far a forecast lies beyond them: in logarithms of what a law takes."""

import numpy as np
import pandas as pd

from scaling.laws.base.columns import SIZE_COLUMNS, Columns
from scaling.laws.base.dual import Array
from scaling.runs.columns import derive

_ROOT = np.sqrt(2.0)

Coordinates = dict[str, Array]
"""A direction, called like the column that grows along it -> the runs' places on it, (runs,), in logarithms."""


def coordinates(columns: Columns) -> Coordinates:
    """The directions of a law's columns. Those of size and tokens have compute and tokens per parameter between them.

    Their sums and differences are divided by the root of two, so that a step has one length in every direction.
    """
    named = {name: np.atleast_1d(np.asarray(values, dtype=float)) for name, values in columns.items()}
    if not {"parameters", "tokens"} <= set(named):
        length = max((len(values) for values in named.values()), default=0)
        table = derive(pd.DataFrame({name: np.broadcast_to(values, length) for name, values in named.items()}))
        if {"parameters", "tokens"} <= set(table.columns):
            named = {name: table[name].to_numpy(dtype=float) for name in ("parameters", "tokens")}
    if {"parameters", "tokens"} <= set(named):
        size, tokens = np.broadcast_arrays(np.log(named["parameters"]), np.log(named["tokens"]))
        return dict(zip(SIZE_COLUMNS, (size, tokens, (size + tokens) / _ROOT, (tokens - size) / _ROOT), strict=True))
    return {name: np.log(values) for name, values in named.items() if (values > 0).all()}


def in_units(name: str, place: float, places: Coordinates) -> float:
    """A place on a direction in the units of its column; flops are 6 parameters tokens."""
    if len(places) == len(SIZE_COLUMNS) and tuple(places) == SIZE_COLUMNS and name in ("flops", "tokens_per_parameter"):
        return float(np.exp(place * _ROOT) * (6.0 if name == "flops" else 1.0))
    return float(np.exp(place))


def beyond(places: Coordinates, fitted: Coordinates) -> Array:
    """How far each place lies outside the fitted ones, (runs,): in the direction in which it is furthest; 0 between them.

    For size and tokens the fitted ones fill an octagon, whose sides are the extremes of size, tokens, compute and ratio.
    """
    outside = [np.maximum(places[name] - known.max(), known.min() - places[name]) for name, known in fitted.items()]
    return np.asarray(np.maximum(np.max(outside, axis=0, initial=0.0), 0.0))
