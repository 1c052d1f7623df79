"""A law's picture as plain data: what is drawn, in order; `scaling.show.pictures` draws it.

So a law says what belongs into its picture without knowing what it is drawn with.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from scaling.laws.base.columns import Columns
from scaling.laws.base.dual import Array

Rows = npt.NDArray[np.intp]
MOST_GROUPS = 6
"""The most curves in one panel: more cannot be distinguished."""


class Fitted(Protocol):
    """What a picture takes of a fit (`scaling.fit.result.Fit`)."""

    @property
    def theta(self) -> Array:
        """The parameters."""

    @property
    def columns(self) -> dict[str, Array]:
        """The fitted runs."""

    @property
    def target(self) -> Array:
        """What was fitted, (runs,)."""

    @property
    def fitted(self) -> Array:
        """The law's values for the fitted runs."""

    @property
    def holdout(self) -> Any:
        """Held-out runs: a table with the columns `actual`, `predicted` and those of size and tokens; or an empty one."""

    def values(self) -> dict[str, float]:
        """The parameters by name."""

    def curve(self, columns: Columns) -> Array:
        """The law's values, (runs,)."""

    def predict(self, columns: Columns) -> Any:
        """Forecasts with intervals (`scaling.fit.result.Prediction`)."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve."""

    x: Array
    y: Array
    label: str | None = None
    dashes: int = 0
    """which of the line styles; 0 is solid"""
    width: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Points:
    """Runs or optima."""

    x: Array
    y: Array
    label: str | None = None
    group: int | None = None
    """which marker and shade of grey; None: all points are of one kind"""
    size: float = 6.0


@dataclass(frozen=True, kw_only=True)
class Crosses:
    """Held-out runs."""

    x: Array
    y: Array
    label: str
    size: float = 9.0
    edge: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Band:
    """The law along x with its 95 % interval, which is left out where it is not finite."""

    x: Array
    y: Array
    low: Array
    high: Array
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Contours:
    """Lines of equal value over a grid, all three arrays of its shape."""

    x: Array
    y: Array
    value: Array
    levels: Array


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes."""

    marks: tuple[Line | Points | Crosses | Band | Contours, ...]
    xlabel: str
    ylabel: str
    title: str
    legend: str | None = None
    """title of the legend"""
    log: str = ""
    """axes that are logarithmic: "", "x" or "xy" """
    xlim: tuple[float, float] | None = None
    ylim: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Panels side by side."""

    caption: str
    panels: tuple[Panel, ...]
    width: float = 8.0
    """inches"""


def band(fit: Fitted, x: Array, columns: Columns, label: str | None = None) -> Band:
    """The law along `x`, at the columns that go with it (numbers stand for columns that do not change)."""
    forecast = fit.predict({name: np.broadcast_to(value, x.shape).astype(float) for name, value in columns.items()})
    return Band(x=x, y=forecast.value, low=forecast.law_low, high=forecast.law_high, label=label)


def groups(values: Array, most: int = MOST_GROUPS) -> list[tuple[float, Rows]]:
    """Rows by value (within 3 %), or by `most` equal shares of the sorted values where there are more values than that."""
    order = np.argsort(values)
    starts = np.flatnonzero(np.diff(np.log(values[order])) > 0.03) + 1
    parts = np.split(order, starts) if len(starts) < most else np.array_split(order, most)
    return [(float(np.exp(np.log(values[part]).mean())), part) for part in parts if len(part)]
