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
SAME = 0.03
"""Values whose logarithms are no further apart than this are drawn as one."""
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
    def labels(self) -> Rows:
        """Which run each row is a point of: equal for checkpoints of one run."""

    @property
    def target(self) -> Array:
        """What was fitted, (runs,)."""

    @property
    def fitted(self) -> Array:
        """The law's values for the fitted runs."""

    @property
    def holdout(self) -> Any:
        """Held-out runs: a table with the columns `actual`, `predicted` and those of size and tokens; or an empty one."""

    @property
    def sweeps(self) -> Any:
        """Of a law of optima: a table of the runs that these are the best of, `name`, `setting`, `loss` and `curve`."""

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


Mark = Line | Points | Crosses | Band | Contours


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes."""

    marks: tuple[Mark, ...]
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


def sweeps(fit: Fitted, setting: str, title: str) -> tuple[Panel, ...]:
    """Loss against a setting, with the parabola of every group; of many groups some, from first to last."""
    if not len(fit.sweeps):
        return ()
    names = list(dict.fromkeys(fit.sweeps["name"]))
    names = [names[index] for index in np.unique(np.linspace(0, len(names) - 1, MOST_GROUPS).round().astype(int))]
    marks: list[Line | Points] = []
    for index, name in enumerate(names):
        own = fit.sweeps[fit.sweeps["name"] == name]
        x, inside = np.log(own["setting"].to_numpy()), own["curve"].notna().to_numpy()
        wide = np.linspace(x[inside].min(), x[inside].max(), 60)
        numbers = np.polyfit(x[inside] - x.mean(), own["curve"].to_numpy()[inside], 2)
        marks.append(Line(x=np.exp(wide), y=np.polyval(numbers, wide - x.mean()), dashes=index))
        marks.append(Points(x=np.exp(x), y=own["loss"].to_numpy(), group=index, label=str(name), size=5))
    return (Panel(marks=tuple(marks), xlabel=setting.replace("_", " "), ylabel="loss (nats per token)", title=title, log="x"),)


def groups(values: Array, most: int = MOST_GROUPS) -> list[tuple[float, Rows]]:
    """Rows by value (within 3 %), or by `most` equal shares of the sorted values where there are more values than that."""
    order = np.argsort(values)
    starts = np.flatnonzero(np.diff(np.log(values[order])) > SAME) + 1
    parts = np.split(order, starts) if len(starts) < most else np.array_split(order, most)
    return [(float(np.exp(np.log(values[part]).mean())), part) for part in parts if len(part)]
