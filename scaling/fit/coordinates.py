"""Where runs lie, and how far a forecast lies beyond them: in logarithms of what a law takes."""

import numpy as np
import pandas as pd

from scaling.laws.base.columns import SIZE_COLUMNS, Columns
from scaling.laws.base.dual import Array
from scaling.runs.columns import derive

Coordinates = dict[str, Array]
"""A direction, called like the column that grows along it -> the runs' places on it, (runs,), in logarithms."""


def table_of(columns: Columns) -> pd.DataFrame:
    """A law's columns, and those of size and tokens that follow from them."""
    named = {name: np.atleast_1d(np.asarray(values, dtype=float)) for name, values in columns.items()}
    length = max((len(values) for values in named.values()), default=0)
    return derive(pd.DataFrame({name: np.broadcast_to(values, length) for name, values in named.items()}))


def coordinates(columns: Columns) -> Coordinates:
    """The directions of a law's columns. Those of size and tokens have compute and tokens per parameter between them.

    Their sums and differences are divided by the root of two, so that a step has one length in every direction.
    """
    table = table_of(columns)
    if {"parameters", "tokens"} <= set(table.columns):
        size, tokens = (np.log(table[name].to_numpy(dtype=float)) for name in ("parameters", "tokens"))
        root = np.sqrt(2.0)
        return dict(zip(SIZE_COLUMNS, (size, tokens, (size + tokens) / root, (tokens - size) / root), strict=True))
    values = {name: table[name].to_numpy(dtype=float) for name in columns}
    return {name: np.log(column) for name, column in values.items() if (column > 0).all()}


def beyond(places: Coordinates, fitted: Coordinates) -> Array:
    """How far each place lies outside the fitted ones, (runs,): in the direction in which it is furthest; 0 between them.

    For size and tokens the fitted ones fill an octagon, whose sides are the extremes of size, tokens, compute and ratio.
    """
    outside = [np.maximum(places[name] - known.max(), known.min() - places[name]) for name, known in fitted.items()]
    return np.asarray(np.maximum(np.max(outside, axis=0, initial=0.0), 0.0))
