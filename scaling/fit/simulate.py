"""Runs from a known law with noise: do fits recover it, and do their intervals cover it as often as they say?"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from common.errors import UserError, WorkFailed
from scaling.fit.fitting import fit
from scaling.fit.result import Fit, parameter_table
from scaling.fit.solver import Objective
from scaling.laws.base.columns import SHARES, Columns, from_size_and_tokens
from scaling.laws.base.dual import Array
from scaling.laws.base.law import Law, ObjectiveName

# Studies of optima: loss is LOWEST + CURVATURE (x - x_best)^2 in x = log of the setting (of f / (1 - f) for a fraction).
LOWEST, CURVATURE = 3.0, 0.05
_SETTINGS = np.linspace(-1.5, 1.5, 7)
_FRACTIONS = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8])


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What came out of many simulated studies."""

    law: Law
    truth: Mapping[str, float]
    noise: float
    sets: int
    runs: int
    method: str
    coverage: Mapping[str, float | None]
    """share of the sets whose 95 % interval holds the true parameter; None where the runs do not determine it"""
    law_coverage: float | None
    """share whose interval of the law holds the true law at a run far beyond the study"""
    run_coverage: float | None
    """share whose interval of a run holds a new noisy run at that point"""
    median: Mapping[str, float]
    """median of the estimates"""
    failed: int
    """sets that could not be fitted"""
    warned: Mapping[str, float]
    """warnings (their first words) and the share of the sets that had them"""
    fraction_mae: float | None
    """mean absolute error of the best QAT fraction over the study's settings; None: the law does not know it"""
    seconds: float


def _gaussian(columns: Columns, runs: int, random: np.random.Generator) -> Array:
    return random.normal(size=runs)


def _skewed(columns: Columns, runs: int, random: np.random.Generator) -> Array:
    """Runs fail upwards: an exponential, whose median is the law."""
    return np.asarray(random.exponential(size=runs) - np.log(2.0))


def _growing(columns: Columns, runs: int, random: np.random.Generator) -> Array:
    """Three times as much for the smallest run as for the largest, by its first column."""
    place = np.log(next(iter(columns.values())))
    return np.asarray(random.normal(size=runs) * 3.0 ** (0.5 - (place - place.min()) / max(float(np.ptp(place)), 1e-12)))


def _shared(columns: Columns, runs: int, random: np.random.Generator) -> Array:
    """Runs of one size share four fifths of the variance, as checkpoints of one run do."""
    label = np.unique(columns.get("parameters", next(iter(columns.values()))), return_inverse=True)[1]
    return np.asarray(np.sqrt(0.8) * random.normal(size=label.max() + 1)[label] + np.sqrt(0.2) * random.normal(size=runs))


NOISES = {"gaussian": _gaussian, "skewed": _skewed, "growing": _growing, "shared": _shared}
"""Kinds of noise: of variance 1 for gaussian, skewed and shared."""


def study(
    law: Law, truth: Mapping[str, float], columns: Columns, noise: float, random: np.random.Generator, kind: str = "gaussian"
) -> pd.DataFrame:
    """One simulated study.

    Args:
        law: the law.
        truth: its parameters.
        columns: the runs; for a law of optima, the groups.
        noise: standard deviation; of the loss for a law of optima, else see `Law.noise`.
        random: where the noise comes from.
        kind: of `NOISES`; points of "shared" noise have one name for each size.
    """
    value = law.value(np.array([[truth[name] for name in law.names]]), columns)[0]
    if law.optimum_of is None:
        deviation = noise * NOISES[kind](columns, len(value), random)
        target = value * np.exp(deviation) if Objective.of(law, None).log else value + deviation
        frame = pd.DataFrame({**columns, law.target: target})
    else:
        frame = _around(law, columns, value, noise, random)
    frame["name"] = [f"run {number}" for number in range(1, len(frame) + 1)]
    if kind == "shared" and "parameters" in frame.columns:
        frame["name"] = frame["parameters"].map("size {:.4g}".format)
    return frame


def _around(law: Law, columns: Columns, best: Array, noise: float, random: np.random.Generator) -> pd.DataFrame:
    assert law.optimum_of is not None
    share = law.optimum_of in SHARES
    rows = []
    for index, optimum in enumerate(best):
        at = {name: column[index] for name, column in columns.items()}
        if share:
            settings, axis = _FRACTIONS, np.log(_FRACTIONS / (1.0 - _FRACTIONS))
            centre = np.log(max(optimum, 0.005) / (1.0 - optimum))
        else:
            axis = np.log(optimum) + _SETTINGS + random.uniform(-0.3, 0.3)  # a study does not know the optimum
            settings, centre = np.exp(axis), np.log(optimum)
        loss = LOWEST + CURVATURE * (axis - centre) ** 2 + noise * random.normal(size=len(axis))
        rows += [{**at, law.optimum_of: setting, "loss": value} for setting, value in zip(settings, loss, strict=True)]
    return pd.DataFrame(rows)


def simulate(
    law: Law,
    *,
    truth: Mapping[str, float] | None = None,
    columns: Columns | None = None,
    beyond: Columns | None = None,
    noise: float | None = None,
    kind: str = "gaussian",
    sets: int = 200,
    bootstrap: int = 400,
    seed: int = 0,
    objective: ObjectiveName | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Simulation:
    """Simulate `sets` studies, fit each from the law's full starting grid, and count how often intervals cover.

    Args:
        law: what is simulated and fitted.
        truth: parameters in place of the law's own.
        columns: runs of a study in place of the law's own.
        beyond: columns of one run to forecast in place of the law's own.
        noise: in place of the law's own.
        kind: of the noise, of `NOISES`.
        sets: studies.
        bootstrap: draws of each fit.
        seed: of everything.
        objective: for the fits.
        progress: called with the number of finished studies.

    Raises:
        UserError: the law has no constants, or an unknown one is given; no study to imitate.
        WorkFailed: no study could be fitted.
    """
    started = time.monotonic()
    values = {**law.truth, **(truth or {})}
    law.check_values(values, "--truth")
    if noise == 0:
        raise UserError("--noise 0 leaves intervals nothing to cover; --out FILE.csv writes a study without noise")
    columns = columns or (law.design() if law.design else None)
    if set(values) != set(law.names) or columns is None:
        raise UserError(
            f"{law.name} has no constants or design of its own: type --truth NAME=VALUE for {', '.join(law.names)} "
            "and --design DATA"
        )
    far = _last_of(beyond or law.beyond or columns)
    noise = law.noise if noise is None else noise
    counts = _Counts(law, values, far)
    for number in range(sets):
        random = np.random.default_rng([seed, number])
        frame = study(law, values, columns, noise, random, kind)
        try:
            fitted = fit(law, frame, bootstrap=bootstrap, seed=seed, objective=objective)
        except (UserError, WorkFailed):
            counts.failed += 1
        else:
            counts.add(fitted, noise, random, kind)
        progress(number + 1)
    if not counts.fits:
        raise WorkFailed(f"none of {sets} simulated studies of {law.name} could be fitted")
    return counts.report(noise, sets, time.monotonic() - started)


def _last_of(runs: Columns) -> dict[str, Array]:
    """The last run, as columns of one."""
    return {name: np.atleast_1d(np.asarray(column, dtype=float))[-1:] for name, column in runs.items()}


class _Counts:
    """Adds up over studies."""

    def __init__(self, law: Law, truth: Mapping[str, float], far: Columns) -> None:
        self.law, self.far = law, far
        self.true_theta = np.array([[truth[name] for name in law.names]])
        self.aim = float(law.value(self.true_theta, far)[0, 0])
        self.truth = dict(truth) | {name: float(how({**truth, **law.measured({})})) for name, how in law.derived.items()}
        self.failed = 0
        self.fits: list[Fit] = []
        self.inside: dict[str, list[bool | None]] = {name: [] for name in self.truth}
        self.law_inside: list[bool | None] = []
        self.run_inside: list[bool | None] = []

    def add(self, fitted: Fit, noise: float, random: np.random.Generator, kind: str) -> None:
        table = parameter_table(fitted)
        self.fits.append(fitted)
        for name, value in self.truth.items():
            self.inside[name].append(_holds(table[name]["low"], value, table[name]["high"]))
        deviation = noise * float(NOISES[kind](self.far, 1, random)[0]) / (3.0 if kind == "growing" else 1.0)
        new_run = self.aim * np.exp(deviation) if fitted.objective.log else self.aim + deviation
        forecast = fitted.predict(self.far)
        self.law_inside.append(_holds(forecast.law_low[0], self.aim, forecast.law_high[0]))
        self.run_inside.append(_holds(forecast.low[0], new_run, forecast.high[0]))

    def report(self, noise: float, sets: int, seconds: float) -> Simulation:
        estimates = pd.DataFrame([fitted.values() for fitted in self.fits])
        warned = pd.Series([" ".join(text.split()[:5]) for fitted in self.fits for text in fitted.warnings], dtype=object)
        return Simulation(
            law=self.law,
            truth=self.truth,
            noise=noise,
            sets=sets,
            runs=len(self.fits[0].runs),
            method=self.fits[0].draws.method,
            coverage={name: _share(inside) for name, inside in self.inside.items()},
            law_coverage=_share(self.law_inside),
            run_coverage=None if self.law.optimum_of else _share(self.run_inside),
            median={name: float(estimates[name].median()) for name in self.truth},
            failed=self.failed,
            warned={str(text): float(count) / len(self.fits) for text, count in warned.value_counts().head(6).items()},
            fraction_mae=self._fraction_mae(),
            seconds=seconds,
        )

    def _fraction_mae(self) -> float | None:
        if self.law.best_fraction is None:
            return None
        columns, theta = self.fits[0].columns, np.array([fitted.theta for fitted in self.fits])
        exact = self.law.best_fraction(self.true_theta, columns)
        return float(np.mean(np.abs(self.law.best_fraction(theta, columns) - exact)))


def _holds(low: float, value: float, high: float) -> bool | None:
    """None: there is no interval."""
    return None if np.isnan(low) else bool(low <= value <= high)


def _share(inside: list[bool | None]) -> float | None:
    """The share that covers. An interval that is missing covers nothing, unless all are."""
    return None if all(one is None for one in inside) else float(np.mean([bool(one) for one in inside]))


def design_from(frame: pd.DataFrame, law: Law) -> dict[str, Array]:
    """The columns of a study from a table of runs."""
    if {"parameters", "tokens"} <= set(frame.columns) and not set(law.columns) <= set(frame.columns):
        frame = frame.assign(**from_size_and_tokens(frame["parameters"], frame["tokens"]))
    missing = [name for name in law.columns if name not in frame.columns]
    if missing:
        raise UserError(f"--design: no column {' and '.join(map(repr, missing))}, which {law.name} needs")
    return {name: frame[name].to_numpy(dtype=float) for name in law.columns}
