"""Warnings about a fit, in plain words."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd

from scaling.fit.intervals import BOOTSTRAP, NONE, STUDENT, group_degrees, leverage, visible
from scaling.fit.result import Fit
from scaling.fit.solver import solve
from scaling.laws.base.dual import Array

CORRELATION = 0.99
REACH = {"flops": 10.0, "parameters": 10.0, "tokens": 10.0, "tokens_per_parameter": 2.0, "batch_tokens": 10.0, "bits": 1.0}
"""How many times beyond the largest and below the smallest fitted run a forecast is still called near."""
FEW_DRAWS = 100
_VANISHED = 1e-10  # of a prediction: a term so small is none
_OUTLIER = 5.0  # robust standard deviations
_INFLUENCE = 1.0  # standard errors that one run may move a parameter (Belsley, Kuh and Welsch, 1980, for small samples)


def warnings_of(fit: Fit, optimum: Array) -> list[str]:
    """All warnings about a fit whose optimum, in solver units, is given."""
    numbers = fit.runs.select_dtypes("number").dropna(axis="columns")
    known = {str(name): numbers[name].to_numpy(dtype=float) for name in numbers.columns}
    remarks = fit.law.remarks(known) if set(fit.law.columns) <= set(known) else []
    return [
        *_too_few(fit),
        *remarks,
        *_unidentified(fit),
        *_bounds(fit),
        *_starts(fit),
        *_correlations(fit),
        *_outliers(fit),
        *_influence(fit, optimum),
        *_intervals(fit),
        *_impossible_holdout(fit),
        *extrapolation(fit, fit.holdout),
    ]


def _too_few(fit: Fit) -> list[str]:
    runs, free = len(fit.runs), len(fit.free)
    what = "optima" if fit.law.optimum_of else "runs"
    remarks = []
    if runs < free:
        remarks.append(f"{runs} {what} for {free} parameters: many values fit equally well, and these are one of them")
    if runs == fit.rank:
        remarks.append(
            f"{runs} {what} for as many numbers: the law goes through every point and nothing checks it. No intervals"
        )
    return remarks


def _unidentified(fit: Fit) -> list[str]:
    if len(fit.runs) < len(fit.free):
        return []
    names = fit.unknown_parameters()
    if not names:
        return []
    return [
        f"these runs do not determine {', '.join(names)}: values are arbitrary and have no intervals. "
        f"The law needs {fit.law.needs or 'runs that differ more'}"
    ]


def _bounds(fit: Fit) -> list[str]:
    remarks = []
    felt = np.abs(fit.gradient(fit.columns)).max(axis=0) / (1.0 if fit.objective.log else np.abs(fit.target).max())
    for name, share in zip(fit.free, felt, strict=True):
        parameter, value = fit.law.parameters[name], float(fit.theta[fit.law.names.index(name)])
        if parameter.log and share < _VANISHED:
            remarks.append(f"{name} vanished: the runs do not need its term, or cannot separate it from another")
        for bound in (parameter.low, parameter.high):
            if np.isfinite(bound) and abs(value - bound) <= 1e-6 * max(1.0, abs(bound)) and not (parameter.log and bound == 0):
                remarks.append(f"{name} is at its bound {bound:g}: the runs would take it further. Do not read it as a result")
    return remarks


def _starts(fit: Fit) -> list[str]:
    if fit.starts_tried > 1 and fit.starts_reached < max(2, 0.01 * fit.starts_tried):
        return [f"only {fit.starts_reached} of {fit.starts_tried} starts reached this optimum: a better one may exist"]
    return []


def _correlations(fit: Fit) -> list[str]:
    names = fit.free
    jacobian = fit.jacobian()
    if len(jacobian) <= len(names) or fit.unknown_parameters():
        return []
    scale = np.linalg.norm(jacobian, axis=0)
    covariance = np.linalg.pinv((jacobian / scale).T @ (jacobian / scale))
    deviation = np.sqrt(np.diag(covariance))
    correlation = np.abs(covariance / np.outer(deviation, deviation))
    # A coefficient always goes with the exponent of its term: that says nothing about a study.
    exponents = [index for index, name in enumerate(names) if not fit.law.parameters[name].log]
    pairs = [
        (correlation[i, j], names[i], names[j])
        for place, i in enumerate(exponents)
        for j in exponents[:place]
        if correlation[i, j] > CORRELATION
    ]
    if not pairs:
        return []
    shown = ", ".join(f"{a} with {b} ({value:.4f})" for value, a, b in sorted(pairs, reverse=True)[:3])
    more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
    return [
        f"these runs hardly tell parameters apart: {shown}{more} (correlations). Other values of both fit as well; "
        "forecasts near the runs do not mind, far ones do"
    ]


def _outliers(fit: Fit) -> list[str]:
    residuals = fit.residuals
    spread = 1.4826 * np.median(np.abs(residuals - np.median(residuals)))
    if len(residuals) < 10 or spread == 0:
        return []
    distance = np.abs(residuals) / spread
    far = np.argsort(-distance)[: int(np.sum(distance > _OUTLIER))]
    if not len(far):
        return []
    counts = Counter(fit.runs["name"].iloc[far].astype(str))
    shown = [f"{name} ({count} points)" if count > 1 else name for name, count in list(counts.items())[:5]]
    names = ", ".join(shown) + (", ..." if len(counts) > 5 else "")
    what = "run" if fit.labels.max() + 1 == len(residuals) else "point"
    hint = (
        "" if fit.objective.name == "huber-log" else "; they pull least squares along (--objective huber-log does not let them)"
    )
    return [
        f"{len(far)} {what}{'s lie' if len(far) > 1 else ' lies'} more than {_OUTLIER:g} robust standard deviations "
        f"off the law: {names}{hint}"
    ]


def leave_one_out(fit: Fit, optimum: Array) -> Array:
    """Optima (runs, parameters; solver units) of fits that leave one run out, with all its points."""
    labels = fit.labels
    runs = int(labels.max()) + 1
    start = visible(fit.law, optimum, fit.jacobian(), frozenset(fit.fixed), float(np.sqrt(np.mean(fit.residuals**2))))
    starts = np.repeat(start[None], runs, axis=0)
    weights = (1.0 - np.eye(runs))[:, labels] * fit.weights
    return solve(fit.law, fit.objective, fit.columns, fit.target, starts, weights=weights, fixed=frozenset(fit.fixed)).solver


def _influence(fit: Fit, optimum: Array) -> list[str]:
    """Runs without which the law would be different, or could not be fitted."""
    count = int(fit.labels.max()) + 1
    if count > 2000 or not count > fit.rank > 0 or not len(fit.draws.theta):
        return []
    names = fit.run_names
    alone = np.flatnonzero(leverage(fit.jacobian()) > 0.99)
    if len(alone):
        shown = ", ".join(str(fit.runs["name"].iloc[index]) for index in alone[:4])
        these = "these runs" if len(alone) > 1 else "this run"
        return [f"the law goes through {shown} whatever the other runs say: part of it rests on {these} alone"]
    determined = [name not in fit.unknown_parameters() and name not in fit.fixed for name in fit.law.names]
    moved = (leave_one_out(fit, optimum) - optimum) * determined
    drawn = fit.law.to_solver(fit.draws.theta)
    low, high = np.quantile(drawn, (0.1587, 0.8413), axis=0)
    distance = np.abs(moved) / np.where(high > low, (high - low) / 2.0, np.inf)
    worst = distance.max(axis=1)
    remarks = []
    for index in np.argsort(-worst)[:3]:
        if worst[index] > _INFLUENCE:
            which = int(np.argmax(distance[index]))
            without = fit.law.from_solver((optimum + moved[index])[None])[0, which]
            remarks.append(
                f"without {names[index]}, {fit.law.names[which]} would be {without:.4g} instead of "
                f"{fit.theta[which]:.4g} ({worst[index]:.1f} standard errors)"
            )
    return remarks


def _intervals(fit: Fit) -> list[str]:
    draws, remarks = fit.draws, []
    degrees = group_degrees(fit.jacobian(), fit.labels, fit.rank)
    if draws.method == STUDENT and degrees < 5:
        count = max(degrees, 1)
        remarks.append(
            f"{count} residual degree{'s' * (count > 1)} of freedom: intervals are Student-t from noise of the "
            "residuals' own size, and as wide as so few runs make them"
        )
    if draws.lost:
        why = (
            "the runs that they drew cannot tell the parameters apart" if draws.method == BOOTSTRAP else "they found no optimum"
        )
        remarks.append(
            f"{draws.lost} of the {draws.wanted} refits behind the intervals have no answer ({why}): the intervals rest on the "
            f"other {len(draws.theta)}"
        )
    if 0 < draws.wanted < FEW_DRAWS:
        remarks.append(
            f"{draws.wanted} draws are few for a 95 % interval: its ends are themselves uncertain (--bootstrap 1000)"
        )
    if draws.method == NONE and len(fit.runs) > fit.rank:
        remarks.append("no intervals were asked for (--bootstrap 0)")
    return remarks


def _distances(fit: Fit, runs: pd.DataFrame) -> Iterator[tuple[str, Array, Array, float, float]]:
    """Column, its values, how many times beyond the fitted runs each lies, and the smallest and largest fitted one."""
    known = fit.runs if fit.chain is None else fit.chain.runs
    for column in REACH:
        if column not in runs.columns or column not in known.columns or (column == "bits" and column not in fit.law.columns):
            continue
        value, fitted = runs[column].to_numpy(dtype=float), known[column].to_numpy(dtype=float)
        fitted = fitted[fitted > 0]
        if len(fitted):
            low, high = float(fitted.min()), float(fitted.max())
            yield column, value, np.maximum(value / high, low / value), low, high


def far_columns(fit: Fit, run: pd.DataFrame) -> tuple[str, ...]:
    """The columns in which one run lies far outside the fitted ones."""
    return tuple(column for column, _, times, _, _ in _distances(fit, run) if times[0] > REACH[column])


def _impossible_holdout(fit: Fit) -> list[str]:
    held = fit.holdout
    return impossible(fit, held["predicted"].to_numpy(), held["impossible"].to_numpy()) if len(held) else []


def impossible(fit: Fit, values: Array, outside: npt.NDArray[np.bool_]) -> list[str]:
    """Where the law leaves what its target can be."""
    if not outside.any():
        return []
    count = f"{outside.sum()} of {len(values)} forecasts" if len(values) > 1 else "the forecast"
    end = "0" if values[outside].min() <= 0 else "1"
    return [
        f"the law does not hold here: for {count} it says {'less' if end == '0' else 'more'} than {end}, which no "
        f"{fit.law.target} is. {end} is shown, without an interval: do not read it as a result"
    ]


def extrapolation(fit: Fit, runs: pd.DataFrame) -> list[str]:
    """Whether forecasts lie far outside the fitted runs, to either side: one warning that names the furthest in each column."""
    far, distances = np.zeros(len(runs), dtype=bool), []
    for column, value, times, low, high in _distances(fit, runs):
        outside = times > REACH[column]
        if outside.any():
            far |= outside
            worst = int(np.argmax(np.where(outside, times, 0.0)))
            side = f"above the largest fitted ({high:.3g})" if value[worst] > high else f"below the smallest fitted ({low:.3g})"
            distances.append(f"{column} {value[worst]:.3g} is {times[worst]:.3g} times {side}")
    if not distances:
        return []
    lead = f"{far.sum()} of {len(runs)} forecasts lie far outside the fitted runs: " if len(runs) > 1 else ""
    covers = "noise, and the law's error as roll-outs show it" if fit.roll_outs else "noise, not an error of the law itself"
    return [f"{lead}{'; '.join(distances)}. The interval covers {covers}; nobody knows whether the law goes on so far"]
