"""Fit a law to a table of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from common.errors import UserError, WorkFailed
from scaling.fit.best_settings import best_settings
from scaling.fit.doubts import doubts
from scaling.fit.intervals import NONE, Draws, draw
from scaling.fit.large import remark, sample_of, searched_rows
from scaling.fit.naive import naive
from scaling.fit.result import Fit, columns_of
from scaling.fit.roll_out import drift, roll_outs
from scaling.fit.solver import Objective, solve
from scaling.fit.warnings import warnings_of
from scaling.laws.base.columns import Columns
from scaling.laws.base.dual import Array
from scaling.laws.base.law import Law, ObjectiveName
from scaling.runs.groups import GROUP, find_groups
from scaling.runs.rows import LeftOut, best_rows, remarks_on_numbers, usable_rows

_SAME_OPTIMUM = 1e-6  # relative difference of objectives


def needed_columns(law: Law, frame: pd.DataFrame) -> list[str]:
    """What a law takes from runs: its columns and target, and the loss where the best of several settings is wanted."""
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
    keep = frozenset(fixed)
    some = searched_rows(len(target), seed)
    rows = slice(None) if some is None else some
    part = {name: columns[name][rows] for name in law.columns}
    solutions = solve(law, objective, part, target[rows], law.to_solver(starts), weights=weights[rows], fixed=keep)
    best = int(np.argmin(solutions.objective))
    value, at = float(solutions.objective[best]), solutions.solver[best]
    if not np.isfinite(value):
        raise WorkFailed(
            f"{law.name}: no start has a finite objective on these runs; check the units of {', '.join(law.columns)}"
        )
    reached = int(np.sum(solutions.objective <= value * (1.0 + _SAME_OPTIMUM) + 1e-20))
    if some is not None:
        whole = solve(law, objective, columns, target, at[None], weights=weights, fixed=keep)
        at, value = whole.solver[0], float(whole.objective[0])
    return at, value, len(starts), reached


def fit(
    law: Law,
    frame: pd.DataFrame,
    *,
    chosen: "pd.Series | None" = None,
    held_out: "pd.Series | None" = None,
    objective: ObjectiveName | None = None,
    delta: float | None = None,
    fixed: Mapping[str, float] | None = None,
    weights: str | None = None,
    group: str | None = None,
    best_per: Sequence[str] = (),
    roll_out: bool = True,
    bootstrap: int = 1000,
    seed: int = 0,
    law_file: str | None = None,
    chain: Fit | None = None,
    context: Mapping[str, Any] | None = None,
) -> Fit:
    """Fit a law to runs.

    Args:
        law: the law.
        frame: runs, as `scaling.runs.read.read_runs` gives them.
        chosen: which rows to fit; all.
        held_out: which rows to predict instead; none.
        objective: the law's own unless given.
        delta: of Huber's loss; 1e-3 unless given.
        fixed: parameters that are known, by name.
        weights: a column of weights; all runs weigh the same without.
        group: a column that says which rows are points of one run; "none": every row is one. Found by itself without.
        best_per: of rows that are equal in these columns only the one of lowest loss is used.
        roll_out: intervals contain the law's own error, as roll-outs show it.
        bootstrap: draws for intervals.
        seed: of random starts and draws.
        law_file: where the law comes from, to find it again.
        chain: a loss fit, for forecasts of a law that takes the loss.
        context: settings that all runs share.

    Raises:
        UserError: no usable run, or a single one; a fixed parameter that the law does not have.
        WorkFailed: no start led anywhere.
    """
    fixed = dict(fixed or {})
    law.check_values(fixed, "--fix")
    needed = needed_columns(law, frame) + ([weights] if weights else [])
    rows = _with_groups(law, _sort_out(law, frame, needed, fixed, chosen, held_out, best_per), group)
    result, optimum = _best_fit(law, rows, Objective.of(law, objective, delta), weights, fixed, seed)
    result = replace(result, law_file=law_file, chain=chain, context=dict(context or {}))
    sample = sample_of(result, seed)
    runs = int(result.labels.max()) + 1
    result = replace(result, draws=_draws(sample, optimum, bootstrap, seed, runs), roll_outs=roll_outs(sample, optimum))
    if roll_out:
        result = replace(result, draws=replace(result.draws, drift=drift(result, seed)))
    result = replace(result, holdout=_predict_held_out(result, rows.held_out))
    remarks = rows.remarks + remark(len(result.runs), bootstrap)
    return replace(result, doubts=tuple(doubts(result, sample)), warnings=tuple(remarks + warnings_of(result, optimum)))


def _best_fit(
    law: Law, rows: "_Rows", objective: Objective, weights: str | None, fixed: Mapping[str, float], seed: int
) -> tuple[Fit, Array]:
    """The fit without draws and warnings, and its optimum in solver units."""
    columns, target = columns_of(rows.fitted, law.columns), rows.fitted[law.target].to_numpy(dtype=float)
    weight = rows.fitted[weights].to_numpy(dtype=float) if weights else np.ones(len(rows.fitted))
    weight = weight / weight.mean()
    optimum, value, tried, reached = optimise(law, objective, columns, target, weights=weight, fixed=fixed, seed=seed)
    result = Fit(
        law=law,
        law_file=None,
        objective=objective,
        runs=rows.fitted.reset_index(drop=True),
        weights=weight,
        theta=np.array([fixed.get(name, number) for name, number in zip(law.names, law.from_solver(optimum), strict=True)]),
        fixed=fixed,
        objective_value=value,
        draws=Draws(NONE, np.empty((0, len(law.names))), np.empty(0), 0),
        starts_tried=tried,
        starts_reached=reached,
        left_out=tuple(rows.left_out),
        sweeps=rows.sweeps,
    )
    return result, optimum


def _draws(fit: Fit, optimum: Array, count: int, seed: int, runs: int) -> Draws:
    return draw(
        fit.law,
        fit.objective,
        fit.columns,
        fit.target,
        optimum,
        fit.jacobian(),
        rank=fit.rank,
        weights=fit.weights,
        fixed=frozenset(fit.fixed),
        labels=fit.labels,
        runs=runs,
        count=count,
        seed=seed,
    )


class _Rows(NamedTuple):
    """The table of runs (for a law of optima, of optima), sorted out."""

    fitted: pd.DataFrame
    held_out: pd.DataFrame
    left_out: list[LeftOut]
    remarks: list[str]
    sweeps: pd.DataFrame


def _sort_out(
    law: Law,
    frame: pd.DataFrame,
    needed: list[str],
    fixed: Mapping[str, float],
    chosen: "pd.Series | None",
    held_out: "pd.Series | None",
    best_per: Sequence[str],
) -> _Rows:
    """Which rows to fit, to predict and to leave out, and remarks on their numbers."""
    usable, left_out = usable_rows(frame, needed)
    held = usable.index.isin(frame.index[held_out]) if held_out is not None else np.zeros(len(usable), dtype=bool)
    inside = usable.index.isin(frame.index[chosen]) if chosen is not None else np.ones(len(usable), dtype=bool)
    fitted, unseen = usable[inside & ~held], usable[held]
    swept, sweeps = len(fitted), pd.DataFrame()
    if best_per:
        fitted, unseen = best_rows(fitted, best_per), best_rows(unseen, best_per)
    remarks = remarks_on_numbers(fitted, needed) if len(fitted) else []
    if len(fitted) < swept:
        remarks.append(
            f"{swept - len(fitted)} of {swept} runs are not the best of their {', '.join(best_per)}: fitted are the other "
            f"{len(fitted)}. The lowest of noisy losses is a little too low"
        )
    if law.optimum_of is not None and len(fitted):
        optima = best_settings(law, fitted)
        fitted, sweeps = optima.rows, optima.sweeps
        left_out, remarks = left_out + optima.left_out, remarks + optima.remarks
        if len(unseen):
            others = best_settings(law, unseen)
            unseen, left_out = others.rows, left_out + others.left_out
    # A law of optima through as many as it has numbers would hide that most of the table could not be used.
    free = sum(name not in fixed for name in law.names)
    if len(fitted) < (max(2, free + 1) if law.optimum_of is not None else 2):
        _refuse(law, len(fitted), left_out)
    return _Rows(fitted, unseen, left_out, remarks, sweeps)


def _with_groups(law: Law, rows: _Rows, group: str | None) -> _Rows:
    """The rows with the run that each is a point of."""
    if law.optimum_of is not None:
        if group is not None:
            raise UserError(f"--group {group}: {law.name} is fitted to optima, each of several runs; leave it out")
        return rows
    labels, remarks = find_groups(rows.fitted, group)
    fitted = rows.fitted.drop(columns=GROUP, errors="ignore") if labels is None else rows.fitted.assign(**{GROUP: labels})
    return rows._replace(fitted=fitted, remarks=rows.remarks + remarks)


def _refuse(law: Law, count: int, left_out: list[LeftOut]) -> None:
    what = ("optimum", "optima") if law.optimum_of else ("usable run", "usable runs")
    reasons = [f"  left out: {row.name}: {row.reason}" for row in left_out[:3]]
    if len(left_out) > 3:
        reasons[2] = f"  and {len(left_out) - 2} more were left out"
    if law.optimum_of and left_out:
        reasons.append("  (rows that are optima already have no losses beside them: drop the column loss)")
    raise UserError(
        "\n".join([f"{law.name} cannot be fitted to {count} {what[count != 1]}; it needs {law.needs or 'more'}", *reasons])
    )


def _predict_held_out(fit: Fit, frame: pd.DataFrame) -> pd.DataFrame:
    if frame.empty:
        return pd.DataFrame()
    columns = columns_of(frame, tuple(fit.law.columns))
    if fit.chain is not None:
        columns |= columns_of(frame, tuple(name for name in fit.chain.law.columns if name in frame.columns))
    forecast = fit.predict(columns)
    actual = frame[fit.law.target].to_numpy(dtype=float)
    table = pd.DataFrame({"name": frame["name"].astype(str).to_numpy(), "actual": actual, "predicted": forecast.value})
    table["low"], table["high"], table["impossible"] = forecast.low, forecast.high, forecast.impossible
    known = {name: column for name, column in columns.items() if name in fit.law.columns}
    table["naive"] = naive(fit.columns, fit.target, known) if fit.chain is None else np.nan
    table["relative_error"] = (forecast.value - actual) / actual
    for name in ("parameters", "tokens", "flops", *fit.law.columns):
        if name in frame.columns and name not in table.columns:
            table[name] = frame[name].to_numpy(dtype=float)
    return table
