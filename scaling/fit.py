"""A fit: a law, the runs it was fitted to, its parameters, what is not known about them, and what to distrust.

`fit` makes one, `Fit.predict` forecasts, `scaling.fit_file` carries it through a file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.errors import UserError, WorkFailed
from scaling.interval import Draws, draw
from scaling.laws import Law
from scaling.laws.base import Columns, ObjectiveName
from scaling.laws.dual import Array
from scaling.optima import optima
from scaling.solver import Objective, solve
from scaling.usable import LeftOut, remarks_on_numbers, usable_rows

KEPT_DRAWS = 1000
"""Draws that a file of a fit holds."""
_SAME_OPTIMUM = 1e-6  # relative difference of objectives


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


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What `fit` found."""

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
    starts_tried: int = 0
    starts_reached: int = 0
    holdout: pd.DataFrame = field(default_factory=pd.DataFrame)
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[str, ...] = ()
    chain: "Fit | None" = None
    """the loss law a downstream law takes its loss from, for runs whose loss is not known"""
    context: Mapping[str, Any] = field(default_factory=dict)
    """what all runs had in common"""

    @property
    def columns(self) -> dict[str, Array]:
        """The fitted runs, as the law takes them."""
        return columns_of(self.runs, self.law.columns)

    @property
    def target(self) -> Array:
        """What was fitted."""
        return self.runs[self.law.target].to_numpy(dtype=float)

    @property
    def fitted(self) -> Array:
        """The law's values for the fitted runs."""
        return np.asarray(self.law.value(self.theta[None], self.columns)[0])

    @property
    def residuals(self) -> Array:
        """The objective's residuals."""
        residuals: Array = self.objective.residuals(self.fitted, self.target)
        return residuals

    def values(self) -> dict[str, float]:
        """Parameters and what is derived from them, by name."""
        plain = dict(zip(self.law.names, map(float, self.theta), strict=True))
        return plain | {name: float(how(plain)) for name, how in self.law.derived.items()}

    def drawn_values(self) -> dict[str, Array]:
        """The same for every draw."""
        plain = {name: self.draws.theta[:, index] for index, name in enumerate(self.law.names)}
        return plain | {name: how(plain) for name, how in self.law.derived.items()}

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
        """A point that is nobody's optimum, the middle of the starts: what is not determined there, no such runs tell."""
        middle = [float(np.median(parameter.starts)) for parameter in self.law.parameters.values()]
        return np.array([self.fixed.get(name, value) for name, value in zip(self.law.names, middle, strict=True)])

    @property
    def rank(self) -> int:
        """How many numbers the runs determine: the free parameters less the directions along which they say nothing."""
        return len(self.law.names) - len(self.fixed) - len(self.unknown_directions(self.theta))

    def unknown_directions(self, theta: Array) -> Array:
        """Directions in the free parameters (solver units) along which the runs say nothing, at a `theta`: (n, free)."""
        jacobian = self.gradient(self.columns, theta)
        if not jacobian.shape[1]:
            return np.empty((0, 0))
        scale = np.linalg.norm(jacobian, axis=0)
        scaled = jacobian / np.where(scale > 0, scale, 1.0)
        if len(scaled) < scaled.shape[1]:
            scaled = np.vstack([scaled, np.zeros((scaled.shape[1] - len(scaled), scaled.shape[1]))])
        _, singular, right = np.linalg.svd(scaled)
        return np.asarray(right[singular < 1e-6 * singular[0]] / np.where(scale > 0, scale, 1.0))

    def predict(self, columns: Columns) -> Prediction:
        """Forecast runs given by columns. A downstream law takes the loss from its chain where there is one."""
        count = len(self.draws.theta)
        losses = None
        if self.chain is not None and "loss" in self.law.columns:
            value, drawn, noisy = self.chain.sample(columns, count)
            columns = {**columns, "loss": value}
            losses = drawn[::-1], noisy[::-1]  # both laws may have drawn with one seed: their draws must not go hand in hand
        value, drawn, noisy = self.sample(columns, count, losses)
        low, high = self.draws.interval(noisy)
        law_low, law_high = self.draws.interval(drawn)
        unknown = self._unknown(columns)
        for bound in (low, high, law_low, law_high):
            bound[unknown] = np.nan
        return Prediction(value, low, high, law_low, law_high)

    def sample(self, columns: Columns, count: int, losses: tuple[Array, Array] | None = None) -> tuple[Array, Array, Array]:
        """The law's values (runs,), drawn values of the law and of runs (draws, runs).

        `losses` are drawn values of the column `loss`, of the law and of runs, in place of known ones.
        """
        value = self.law.value(self.theta[None], columns)[0]
        count = min(count, len(self.draws.theta)) if losses is None else min(len(self.draws.theta), len(losses[0]))
        theta, noise = self.draws.theta[:count], self.draws.noise[:count, None]
        with np.errstate(all="ignore"):
            if losses is None:
                drawn = base = self.law.value(theta, columns)
            else:
                drawn, base = (self.law.value(theta, {**columns, "loss": loss[:count]}) for loss in losses)
            noisy = base * np.exp(noise) if self.objective.log else base + noise
        if self.law.target in ("error", "qat_fraction"):  # a law may leave the shares; what it says then is its nearest share
            drawn, noisy = np.clip(drawn, 0.0, 1.0), np.clip(noisy, 0.0, 1.0)
        return value, drawn, noisy

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


def needed_columns(law: Law, frame: pd.DataFrame) -> list[str]:
    """What a law takes from runs: its columns and target, and the loss where optima are to be found."""
    needed = list(dict.fromkeys([*law.columns, law.target]))
    if law.optimum_of is not None and "loss" in frame.columns:
        needed.append("loss")
    return needed


def optimise(
    law: Law,
    objective: Objective,
    columns: Columns,
    target: Array,
    *,
    weights: Array,
    fixed: Mapping[str, float],
    seed: int,
) -> tuple[Array, float, int, int]:
    """The best optimum (solver units), its objective, how many starts were tried and how many reached it.

    Raises:
        WorkFailed: no start has a finite objective.
    """
    starts = law.starting_points(seed)
    for name, value in fixed.items():
        starts[:, law.names.index(name)] = value
    starts = np.unique(starts, axis=0)
    found = solve(law, objective, columns, target, law.to_solver(starts), weights=weights, fixed=frozenset(fixed))
    best = int(np.argmin(found.objective))
    value = float(found.objective[best])
    if not np.isfinite(value):
        raise WorkFailed(
            f"{law.name}: no start has a finite objective on these runs; check the units of {', '.join(law.columns)}"
        )
    return found.solver[best], value, len(starts), int(np.sum(found.objective <= value * (1.0 + _SAME_OPTIMUM) + 1e-20))


def fit(
    law: Law,
    frame: pd.DataFrame,
    *,
    chosen: "pd.Series | None" = None,
    held_out: "pd.Series | None" = None,
    objective: ObjectiveName | None = None,
    fixed: Mapping[str, float] | None = None,
    weights: str | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    law_file: str | None = None,
    chain: Fit | None = None,
    context: Mapping[str, Any] | None = None,
) -> Fit:
    """Fit a law to runs.

    Args:
        law: the law.
        frame: runs, as `scaling.runs.read_runs` gives them.
        chosen: which rows to fit; all.
        held_out: which rows to predict instead; none.
        objective: the law's own unless given.
        fixed: parameters that are known, by name.
        weights: a column of weights; all runs weigh the same without.
        bootstrap: draws for intervals.
        seed: of random starts and draws.
        law_file: where the law comes from, to find it again.
        chain: a loss fit, for a downstream law's forecasts.
        context: settings that all runs share.

    Raises:
        UserError: no usable run, or a single one; a fixed parameter that the law does not have.
        WorkFailed: no start led anywhere.
    """
    fixed = dict(fixed or {})
    check_values(law, fixed, "--fix")
    needed = needed_columns(law, frame) + ([weights] if weights else [])
    fitted, kept_out, left_out, remarks = _sort_out(law, frame, needed, fixed, chosen, held_out)
    columns, target = columns_of(fitted, law.columns), fitted[law.target].to_numpy(dtype=float)
    weight = fitted[weights].to_numpy(dtype=float) if weights else np.ones(len(fitted))
    weight = weight / weight.mean()
    chosen_objective = Objective.of(law, objective)
    optimum, value, tried, reached = optimise(law, chosen_objective, columns, target, weights=weight, fixed=fixed, seed=seed)
    result = Fit(
        law=law,
        law_file=law_file,
        objective=chosen_objective,
        runs=fitted.reset_index(drop=True),
        weights=weight,
        theta=np.array([fixed.get(name, number) for name, number in zip(law.names, law.from_solver(optimum), strict=True)]),
        fixed=fixed,
        objective_value=value,
        draws=Draws("none", np.empty((0, len(law.names))), np.empty(0), 0),
        starts_tried=tried,
        starts_reached=reached,
        left_out=tuple(left_out),
        chain=chain,
        context=dict(context or {}),
    )
    draws = draw(
        law,
        chosen_objective,
        columns,
        target,
        optimum,
        result.jacobian(),
        rank=result.rank,
        weights=weight,
        fixed=frozenset(fixed),
        count=bootstrap,
        seed=seed,
    )
    result = replace(result, draws=draws)
    result = replace(result, holdout=_predict_held_out(result, kept_out))
    from scaling.trust import distrust

    return replace(result, warnings=tuple(remarks + distrust(result, optimum)))


def _sort_out(
    law: Law,
    frame: pd.DataFrame,
    needed: list[str],
    fixed: Mapping[str, float],
    chosen: "pd.Series | None",
    held_out: "pd.Series | None",
) -> tuple[pd.DataFrame, pd.DataFrame, list[LeftOut], list[str]]:
    """Rows (for a law of optima, optima) to fit and to predict, what is left out, and remarks on the numbers."""
    usable, left_out = usable_rows(frame, needed)
    held = usable.index.isin(frame.index[held_out]) if held_out is not None else np.zeros(len(usable), dtype=bool)
    inside = usable.index.isin(frame.index[chosen]) if chosen is not None else np.ones(len(usable), dtype=bool)
    fitted, kept_out = usable[inside & ~held], usable[held]
    remarks = remarks_on_numbers(fitted, needed) if len(fitted) else []
    if law.optimum_of is not None and len(fitted):
        fitted, more, said = optima(law, fitted)
        left_out, remarks = left_out + more, remarks + said
        if len(kept_out):
            kept_out, more, _ = optima(law, kept_out)
            left_out = left_out + more
    # A law of optima through as many as it has numbers would hide that most of the table could not be used.
    free = sum(name not in fixed for name in law.names)
    if len(fitted) < (max(2, free + 1) if law.optimum_of is not None else 2):
        _refuse(law, len(fitted), left_out)
    return fitted, kept_out, left_out, remarks


def check_values(law: Law, values: Mapping[str, float], option: str) -> None:
    """Refuse values of parameters that a law does not have, or that lie outside their bounds."""
    for name, value in values.items():
        if name not in law.parameters:
            raise UserError(f"{option} {name}={value:g}: {law.name} has no such parameter; it has {', '.join(law.names)}")
        parameter = law.parameters[name]
        if not parameter.low <= value <= parameter.high or (parameter.log and value <= 0):
            raise UserError(f"{option} {name}={value:g}: {name} must lie between {parameter.low:g} and {parameter.high:g}")


def _refuse(law: Law, count: int, left_out: list[LeftOut]) -> None:
    what = ("optimum", "optima") if law.optimum_of else ("usable run", "usable runs")
    reasons = [f"  left out: {row.name}: {row.reason}" for row in left_out[:3]]
    if len(left_out) > 3:
        reasons[2] = f"  and {len(left_out) - 2} more were left out"
    found = f"{count} {what[count != 1]}"
    if law.optimum_of and left_out:
        reasons.append("  (rows that are optima already have no losses beside them: drop the column loss)")
    raise UserError("\n".join([f"{law.name} cannot be fitted to {found}; it needs {law.needs or 'more'}", *reasons]))


def _predict_held_out(fit: Fit, frame: pd.DataFrame) -> pd.DataFrame:
    if frame.empty:
        return pd.DataFrame()
    columns = columns_of(frame, tuple(fit.law.columns))
    if fit.chain is not None:
        columns |= columns_of(frame, tuple(name for name in fit.chain.law.columns if name in frame.columns))
    forecast = fit.predict(columns)
    actual = frame[fit.law.target].to_numpy(dtype=float)
    table = pd.DataFrame({"name": frame["name"].astype(str).to_numpy(), "actual": actual, "predicted": forecast.value})
    table["low"], table["high"] = forecast.low, forecast.high
    table["relative_error"] = (forecast.value - actual) / actual
    for name in ("parameters", "tokens", "flops", *fit.law.columns):
        if name in frame.columns and name not in table.columns:
            table[name] = frame[name].to_numpy(dtype=float)
    return table
