"""A fit: a law, the runs it was fitted to, its parameters, how well they are known, and its forecasts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from scaling.fit.coordinates import beyond, coordinates
from scaling.fit.intervals import Draws
from scaling.fit.solver import Objective
from scaling.laws.base.columns import SHARES, Columns
from scaling.laws.base.dual import Array
from scaling.laws.base.law import Law
from scaling.runs.groups import GROUP, labels_of
from scaling.runs.rows import LeftOut


@dataclass(frozen=True)
class Prediction:
    """Forecasts of a law for some runs."""

    value: Array
    low: Array
    high: Array
    """95 % interval of one new run: of the law, and of a run's own deviation from it"""
    law_low: Array
    law_high: Array
    """95 % interval of the law alone"""
    impossible: npt.NDArray[np.bool_]
    """the law says a number that the target cannot have: `value` is the nearest possible one, without intervals"""


@dataclass(frozen=True, kw_only=True)
class RollOut:
    """One forecast of the largest fitted runs from the others."""

    column: str
    """what they are the largest in, of `scaling.fit.coordinates`"""
    limit: float
    """the largest (of losses, the smallest) that was kept, in the column's unit"""
    runs: int
    """points that were forecast"""
    miss: float
    """median of (actual - forecast) / forecast"""
    beyond: float
    """the furthest of them, in logarithms"""
    squared: float
    """mean square of the misses, in the objective's residuals"""
    expected: float
    """what noise and uncertain parameters let it be"""
    distance: float
    """mean of the distances"""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A law fitted to runs (`scaling.fit.fitting.fit` makes one, `scaling.fit.file` carries it through a file)."""

    law: Law
    law_file: str | None
    objective: Objective
    runs: pd.DataFrame
    """the fitted runs: name, the law's columns, its target, and what else pictures and plans use"""
    weights: Array
    theta: Array
    """the optimum, natural units"""
    fixed: Mapping[str, float]
    objective_value: float
    draws: Draws
    roll_outs: tuple[RollOut, ...] = ()
    starts_tried: int = 0
    starts_reached: int = 0
    holdout: pd.DataFrame = field(default_factory=pd.DataFrame)
    left_out: tuple[LeftOut, ...] = ()
    sweeps: pd.DataFrame = field(default_factory=pd.DataFrame)
    """of a law of optima: the runs that these are the best of, `scaling.fit.best_settings.Optima.sweeps`"""
    doubts: tuple[str, ...] = ()
    """why the fit should not be believed, in sentences; the gravest first"""
    warnings: tuple[str, ...] = ()
    chain: "Fit | None" = None
    """the fit that says the loss to a law which takes one, for runs whose loss is not known"""
    context: Mapping[str, Any] = field(default_factory=dict)
    """settings that all runs share"""

    @property
    def free(self) -> list[str]:
        """The parameters that were fitted."""
        return [name for name in self.law.names if name not in self.fixed]

    @property
    def columns(self) -> dict[str, Array]:
        """The fitted runs, as the law takes them."""
        return columns_of(self.runs, self.law.columns)

    @property
    def labels(self) -> npt.NDArray[np.intp]:
        """Which run every point belongs to, from 0: without groups each is one."""
        return labels_of(self.runs)

    @property
    def run_names(self) -> list[str]:
        """What runs are called: one name for each of the `labels`."""
        names = self.runs[GROUP if GROUP in self.runs.columns else "name"].astype(str)
        return list(names.unique()) if GROUP in self.runs.columns else list(names)

    @property
    def target(self) -> Array:
        """What was fitted."""
        return self.runs[self.law.target].to_numpy(dtype=float)

    @property
    def fitted(self) -> Array:
        """The law's values for the fitted runs."""
        return self.curve(self.columns)

    def curve(self, columns: Columns) -> Array:
        """The law's values at the optimum, (runs,)."""
        return np.asarray(self.law.value(self.theta[None], columns)[0])

    @property
    def residuals(self) -> Array:
        """The objective's residuals."""
        residuals: Array = self.objective.residuals(self.fitted, self.target)
        return residuals

    def values(self) -> dict[str, float]:
        """Parameters and what is derived from them, by name."""
        plain = dict(zip(self.law.names, map(float, self.theta), strict=True))
        known = plain | self.measured()
        return plain | {name: float(how(known)) for name, how in self.law.derived.items()}

    def measured(self) -> dict[str, float]:
        """How the runs count what the law takes as it is counted (`Law.measured`)."""
        numbers = self.runs.select_dtypes("number").dropna(axis="columns")
        return dict(self.law.measured({str(name): numbers[name].to_numpy(dtype=float) for name in numbers.columns}))

    def drawn_values(self) -> dict[str, Array]:
        """The same for every draw."""
        plain = {name: self.draws.theta[:, index] for index, name in enumerate(self.law.names)}
        return plain | {name: how(plain | self.measured()) for name, how in self.law.derived.items()}

    def jacobian(self) -> Array:
        """Derivatives of the residuals by the free parameters in solver units, (runs, free), times the root of the weights."""
        return self.gradient(self.columns) * np.sqrt(self.weights)[:, None]

    def gradient(self, columns: Columns, theta: Array | None = None) -> Array:
        """Derivatives of forecasts (their logarithms' where residuals are logarithmic) by the free parameters, (runs, free).

        At the optimum, or at another `theta`.
        """
        free = tuple(index for index, name in enumerate(self.law.names) if name not in self.fixed)
        at = self.theta if theta is None else theta
        value, jacobian = self.law.value_and_jacobian(self.law.to_solver(at[None]), columns, free)
        return np.asarray((jacobian[0] / value[0] if self.objective.log else jacobian[0]).T)

    @property
    def generic_theta(self) -> Array:
        """The middle of the starts: a direction that the runs do not determine even here is not determined anywhere."""
        middle = [float(np.median(parameter.starts)) for parameter in self.law.parameters.values()]
        return np.array([self.fixed.get(name, value) for name, value in zip(self.law.names, middle, strict=True)])

    @cached_property
    def rank(self) -> int:
        """How many numbers the runs determine: the free parameters less the directions along which they say nothing."""
        return len(self.free) - len(self.unknown_directions(self.theta))

    def unknown_directions(self, theta: Array) -> Array:
        """Directions in the free parameters (solver units) along which the runs say nothing, at a `theta`: (n, free)."""
        jacobian = self.gradient(self.columns, theta)
        if not jacobian.shape[1]:
            return np.empty((0, 0))
        scale = np.linalg.norm(jacobian, axis=0)
        scaled = jacobian / np.where(scale > 0, scale, 1.0)
        if len(scaled) < scaled.shape[1]:
            scaled = np.vstack([scaled, np.zeros((scaled.shape[1] - len(scaled), scaled.shape[1]))])
        _, singular, right = np.linalg.svd(scaled, full_matrices=False)  # a million runs squared fit no memory
        return np.asarray(right[singular < 1e-6 * singular[0]] / np.where(scale > 0, scale, 1.0))

    def unknown_parameters(self) -> list[str]:
        """Parameters that could change together without changing any fitted value."""
        unknown = np.zeros(len(self.free), dtype=bool)
        for theta in (self.theta, self.generic_theta):
            directions = self.unknown_directions(theta)
            if len(directions):
                share = np.abs(directions) / np.abs(directions).max(axis=1, keepdims=True)
                unknown |= (share > 0.01).any(axis=0)
        return [name for name, large in zip(self.free, unknown, strict=True) if large]

    def predict(self, columns: Columns) -> Prediction:
        """Forecast runs given by columns. A law that takes the loss has it from its chain where there is one."""
        count = len(self.draws.theta)
        losses = None
        if self.chain is not None and "loss" in self.law.columns:
            value, drawn, noisy = self.chain.sample(columns, count)
            columns = {**columns, "loss": value}
            losses = drawn[::-1], noisy[::-1]  # both laws may have drawn with one seed: their draws must not go hand in hand
        value, drawn, noisy = self.sample(columns, count, losses)
        low, high = self.draws.interval(noisy)
        law_low, law_high = self.draws.interval(drawn)
        possible = np.clip(value, 0.0, 1.0) if self.law.target in SHARES else value
        impossible = possible != value
        for bound in (low, high, law_low, law_high):
            bound[self._unknown(columns) | impossible] = np.nan
        return Prediction(possible, low, high, law_low, law_high, impossible)

    def sample(self, columns: Columns, count: int, losses: tuple[Array, Array] | None = None) -> tuple[Array, Array, Array]:
        """The law's values (runs,), drawn values of the law and of runs (draws, runs).

        `losses` are drawn values of the column `loss`, of the law and of runs, in place of known ones.
        """
        value = self.law.value(self.theta[None], columns)[0]
        noise = self._deviations(columns)
        count = min(count, len(self.draws.theta)) if losses is None else min(len(self.draws.theta), len(losses[0]))
        theta, noise = self.draws.theta[:count], noise[:count]
        with np.errstate(all="ignore"):
            if losses is None:
                drawn = base = self.law.value(theta, columns)
            else:
                drawn, base = (self.law.value(theta, {**columns, "loss": loss[:count]}) for loss in losses)
            noisy = base * np.exp(noise) if self.objective.log else base + noise
        if self.law.target in SHARES:  # a law's values may leave 0 to 1; the nearest share is meant then
            drawn, noisy = np.clip(drawn, 0.0, 1.0), np.clip(noisy, 0.0, 1.0)
        return value, drawn, noisy

    def _deviations(self, columns: Columns) -> Array:
        """Drawn deviations of runs from the law, (draws, runs): noise, and the law's own error so far beyond the fitted."""
        noise = self.draws.noise[:, None]
        if self.draws.drift is None:
            return noise
        own = {name: columns[name] for name in self.law.columns}
        distance = beyond(coordinates(own), coordinates(self.columns))
        return np.asarray(noise + self.draws.drift[:, None] * np.sqrt(distance))

    def _unknown(self, columns: Columns) -> npt.NDArray[np.bool_]:
        """Which forecasts move along a direction that the runs say nothing about."""
        unknown = np.zeros(len(self.gradient(columns)), dtype=bool)
        for theta in (self.theta, self.generic_theta):
            directions = self.unknown_directions(theta)
            if len(directions):
                largest = np.abs(directions).max(axis=1, keepdims=True)
                moves = np.abs(self.gradient(columns, theta) @ (directions / largest).T)
                unknown |= (moves > 1e-5).any(axis=1)
        return unknown


def columns_of(frame: pd.DataFrame, names: tuple[str, ...]) -> dict[str, Array]:
    """Columns of a table as arrays."""
    return {name: frame[name].to_numpy(dtype=float) for name in names}


def parameter_table(fit: Fit) -> dict[str, dict[str, float]]:
    """Value, low and high (95 %; NaN where the runs do not say) of parameters and derived numbers."""
    unknown, drawn = fit.unknown_parameters(), fit.drawn_values()
    table = {}
    for name, value in fit.values().items():
        low, high = (float(bound) for bound in fit.draws.interval(drawn[name]))
        at_bound = low == high and len(fit.draws.theta) > 1  # every refit stopped at one: that says nothing about it
        if name in unknown or (name in fit.law.derived and unknown) or at_bound:
            low = high = math.nan
        if name in fit.fixed:
            low = high = value
        table[name] = {"value": value, "low": low, "high": high}
    return table


def metrics(fit: Fit) -> dict[str, float]:
    """How well the law fits its runs, in the target's units; `relative_error` is the mean of |predicted - actual| / actual."""
    actual, difference = fit.target, fit.fitted - fit.target
    spread = float(np.sum((actual - actual.mean()) ** 2))
    return {
        "mae": float(np.mean(np.abs(difference))),
        "rmse": float(np.sqrt(np.mean(difference**2))),
        "r2": 1.0 - float(np.sum(difference**2)) / spread if spread else math.nan,
        "relative_error": float(np.mean(np.abs(difference / actual))) if (actual != 0).all() else math.nan,
    }


def held_out_summary(fit: Fit) -> dict[str, float] | None:
    """How the held-out runs lie about their 95 % intervals, and how far off law and naive extrapolation are (medians)."""
    held = fit.holdout
    if held.empty:
        return None
    actual = held["actual"]
    known = held["low"].notna()
    error = {name: (held[name] / actual - 1.0).abs().median() for name in ("predicted", "naive") if name in held.columns}
    return {
        "runs": len(held),
        "intervals": int(known.sum()),
        "inside": float(((actual >= held["low"]) & (actual <= held["high"]))[known].mean()),
        "below": float((actual < held["low"])[known].mean()),
        "above": float((actual > held["high"])[known].mean()),
        "median_error": float(error["predicted"]),
        "median_naive_error": float(error.get("naive", math.nan)),
    }
