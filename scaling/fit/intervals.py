"""Draws of a law's parameters: every interval of parameters, forecasts and plans is a pair of their quantiles.

Two ways, chosen by how many runs there are for each parameter (`ENOUGH_RUNS`, `ENOUGH_EACH`):

- bootstrap over runs (Efron 1979): refit to as many runs, drawn with replacement. Nothing is assumed about the noise. With few
  runs a resample is another, worse design than the study was: intervals come out too wide or, with smooth weights, too narrow.
- Student-t: refit to the law plus Gaussian noise whose scale is the residuals' own, over the residual degrees of freedom (which
  corrects for leverage on average), divided by the root of a chi-square draw over its degrees of freedom. For a linear
  law these quantiles are exactly Student's; for others they follow the law's curvature.

Points of one run (checkpoints) share its luck: both ways then take runs, not points. The bootstrap draws whole runs. Student-t
refits to the law plus the residuals of every run, each run's with one sign that is drawn (a wild bootstrap over clusters:
Cameron, Gelbach and Miller, Review of Economics and Statistics 90, 2008), corrected for leverage run by run (CR3 of Bell and
McCaffrey, Survey Methodology 28, 2002), with the degrees of freedom that the runs have.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from scaling.fit.solver import Objective, solve
from scaling.laws.base.columns import Columns
from scaling.laws.base.dual import Array
from scaling.laws.base.law import Law

Labels = npt.NDArray[np.intp]
"""Which run each point belongs to, from 0."""
LEVEL = 0.95
QUANTILES = (0.025, 0.975)
FEWEST_DRAWS = 39
"""With fewer, the smallest draw already lies above the 2.5 % quantile: the k-th of n estimates the quantile k / (n + 1)."""
ENOUGH_RUNS, ENOUGH_EACH = 40, 8
"""Runs in all, and for each free parameter, from which the bootstrap over runs is used: with fewer it was measured to cover
too little (24 runs, 2 parameters: 91.5 %) or too much (24 runs, 5 parameters: 98.5 %)."""

BOOTSTRAP = "bootstrap over runs"
STUDENT = "Student-t"
NONE = "none"


@dataclass(frozen=True)
class Draws:
    """What is not known exactly, as a sample."""

    method: str
    theta: Array
    """(draws, parameters), natural units"""
    noise: Array
    """(draws,): one new run's deviation from the law: target minus law, in logarithms where the objective's residuals are"""
    wanted: int
    """draws asked for; those that did not identify the law are not among `theta`"""
    drift: Array | None = None
    """(draws,): the law's own error one unit of distance beyond the runs, like `noise`; None: it is taken to be true"""

    @property
    def lost(self) -> int:
        """Resamples that did not identify the law."""
        return self.wanted - len(self.theta)

    def interval(self, values: Array) -> tuple[Array, Array]:
        """Low and high of values (draws, ...); NaN without draws."""
        if not len(values):
            nothing = np.full(values.shape[1:], np.nan)
            return nothing, nothing
        # Student-t draws are lost where they are extreme: they count as outside, half of them on either side.
        outside = self.lost / self.wanted if self.method == STUDENT and self.wanted else 0.0
        tail = max(0.0, (QUANTILES[0] - outside / 2.0) / (1.0 - outside))
        low, high = np.nanquantile(values, (tail, 1.0 - tail), axis=0)
        return low, high


def visible(law: Law, optimum: Array, jacobian: Array, fixed: frozenset[str], size: float) -> Array:
    """The optimum (solver units) to start refits from: coefficients whose terms vanished are raised to terms of `size`.

    A vanished coefficient has no slope by which a refit that needs its term could find back to it. `jacobian` is that of the
    free parameters, (runs, free); `size` is in the units of its rows.
    """
    start = optimum.copy()
    free = [index for index, name in enumerate(law.names) if name not in fixed]
    for index, column in zip(free, np.abs(jacobian).max(axis=0, initial=0.0), strict=True):
        if list(law.parameters.values())[index].log and 0 < column < size:
            start[index] += np.log(size / column)
    return start


def leverage(jacobian: Array) -> Array:
    """The diagonal of the hat matrix, for a Jacobian (runs, parameters): how much each run decides its own fitted value."""
    return np.asarray(np.sum(_hat_root(jacobian) ** 2, axis=1))


def _hat_root(jacobian: Array) -> Array:
    """Orthonormal columns Q, (runs, rank), of a hat matrix Q Q'."""
    if not jacobian.size:
        return np.zeros((len(jacobian), 0))
    scale = np.linalg.norm(jacobian, axis=0)
    left, singular, _ = np.linalg.svd(jacobian / np.where(scale > 0, scale, 1.0), full_matrices=False)
    return np.asarray(left[:, singular > 1e-9 * singular[0]])


def group_degrees(jacobian: Array, labels: Labels, rank: int) -> int:
    """Degrees of freedom of labelled runs: their count less the numbers that only differences between runs determine.

    A number that the points of single runs determine (an exponent of tokens, from checkpoints) costs no run. With a run to
    every point these are points less `rank`.
    """
    count = len(np.unique(labels))
    means = np.array([np.bincount(labels, column) for column in jacobian.T]).T / np.bincount(labels)[:, None]
    within = jacobian - means[labels]
    scale = np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    inside = int(np.sum(np.linalg.svd(within / scale, compute_uv=False) > 1e-6)) if within.size else 0
    return min(count - (rank - min(inside, rank)), count - 1)


def corrected(residuals: Array, jacobian: Array, labels: Labels) -> Array:
    """Residuals without what the fit took of them: those of a run, times 1 / (I - H) of its block H of the hat matrix."""
    if labels.max() + 1 == len(labels):
        return np.asarray(residuals / np.sqrt(np.maximum(1.0 - leverage(jacobian), 0.05)))
    left, result = _hat_root(jacobian), residuals.copy()
    for label in range(labels.max() + 1):
        rows = labels == label
        own, share, _ = np.linalg.svd(left[rows], full_matrices=False)
        along = own.T @ residuals[rows]
        result[rows] += own @ (along * (1.0 / np.maximum(1.0 - share**2, 0.2) - 1.0))
    return result


def draw(
    law: Law,
    objective: Objective,
    columns: Columns,
    target: Array,
    optimum: Array,
    jacobian: Array,
    *,
    rank: int,
    weights: Array,
    fixed: frozenset[str],
    labels: Labels,
    runs: int,
    count: int,
    seed: int,
) -> Draws:
    """Draws around an `optimum` (parameters in solver units), from which every refit starts.

    Args:
        law, objective, columns, target, fixed: the fit.
        optimum: its parameters.
        jacobian: derivatives of its residuals, (runs, free parameters).
        rank: how many numbers the runs determine, all free parameters or fewer.
        weights: of the runs.
        labels: which run a point belongs to, from 0; without groups every point is one.
        runs: how many runs these stand for, as many or more (`scaling.fit.large`).
        count: refits.
        seed: of the draws.
    """
    degrees, groups = len(target) - rank, labels.max() + 1
    if degrees <= 0 or count <= 0:
        return Draws(NONE, np.empty((0, len(law.names))), np.empty(0), 0)
    fitted = law.value(law.from_solver(optimum[None]), columns)[0]
    residuals = objective.residuals(fitted, target)
    start = visible(law, optimum, jacobian, fixed, float(np.sqrt(np.mean(residuals**2))))
    problem = _Problem(law, objective, columns, weights, fixed, np.repeat(start[None], count, axis=0))
    random = np.random.default_rng(seed)
    clean = corrected(residuals, jacobian, labels)
    if groups >= max(ENOUGH_RUNS, ENOUGH_EACH * rank):
        return _over_runs(problem, target, clean, jacobian, rank, labels, runs, optimum, random)
    if groups < len(target):
        return _student_over_runs(problem, fitted, clean, labels, group_degrees(jacobian, labels, rank), random)
    return _student(problem, fitted, residuals, degrees, random)


@dataclass(frozen=True)
class _Problem:
    """What all refits share."""

    law: Law
    objective: Objective
    columns: Columns
    weights: Array
    fixed: frozenset[str]
    starts: Array
    """(draws, parameters), solver units"""
    shift: Array | None = None
    """what is added to every refit, solver units"""

    def optimum(self, target: Array) -> Array:
        """The optimum of these very runs, (parameters,), solver units."""
        one = solve(self.law, self.objective, self.columns, target, self.starts[:1], weights=self.weights, fixed=self.fixed)
        return np.asarray(one.solver[0])

    def draws(self, method: str, targets: Array, weights: Array, noise: Array, identified: Any = True) -> Draws:
        """Refit to `targets` and `weights`, each (runs,) or (draws, runs); of the refits, those `identified` (draws,) count."""
        refits = solve(self.law, self.objective, self.columns, targets, self.starts, weights=weights, fixed=self.fixed)
        values = self.law.from_solver(refits.solver if self.shift is None else self._shifted(refits.solver, self.shift))
        good = identified & refits.converged & np.isfinite(values).all(axis=1)
        return Draws(method, values[good], noise[good], len(self.starts))

    def _shifted(self, solver: Array, shift: Array) -> Array:
        low, high = np.array([parameter.solver_bounds for parameter in self.law.parameters.values()]).T
        return np.asarray(np.clip(solver + shift, low, high))


def _over_runs(
    problem: _Problem,
    target: Array,
    residuals: Array,
    jacobian: Array,
    rank: int,
    labels: Labels,
    runs: int,
    optimum: Array,
    random: np.random.Generator,
) -> Draws:
    """The bootstrap over runs; over a sample of `runs` runs the draws lie about the optimum of all, not about the sample's."""
    here, count = labels.max() + 1, len(problem.starts)
    times = random.multinomial(runs, np.full(here, 1.0 / here), size=count).astype(np.float64)[:, labels]
    # A residual is law minus run, a deviation run minus law. Not centred: under Huber the law is no mean of its runs.
    noise = -random.choice(residuals, size=count)
    if runs > here:
        problem = replace(problem, shift=optimum - problem.optimum(target))
    return problem.draws(BOOTSTRAP, target, times * problem.weights, noise, ranks(jacobian, times) >= rank)


def _student_over_runs(
    problem: _Problem, fitted: Array, residuals: Array, labels: Labels, degrees: int, random: np.random.Generator
) -> Draws:
    """Student-t from few runs of several points each."""
    count, degrees = len(problem.starts), max(1, degrees)
    scale = np.sqrt(degrees / random.chisquare(degrees, size=count))[:, None]
    # Signs, not normal numbers: those would crowd residuals at zero, where Huber's loss finds its precision.
    deviations = scale * random.choice([-1.0, 1.0], size=(count, labels.max() + 1))[:, labels] * residuals
    targets = fitted * np.exp(deviations) if problem.objective.log else fitted + deviations
    noise = -scale[:, 0] * random.choice(residuals, size=count)
    return problem.draws(STUDENT, targets, problem.weights, noise)


def _student(problem: _Problem, fitted: Array, residuals: Array, degrees: int, random: np.random.Generator) -> Draws:
    """Student-t, by refits to the law plus noise."""
    count = len(problem.starts)
    variance = np.sum(problem.weights * residuals**2) / degrees
    scale = np.sqrt(variance * degrees / random.chisquare(degrees, size=count))
    # A run of weight w has noise of variance 1 / w.
    deviations = scale[:, None] * random.normal(size=(count, len(fitted))) / np.sqrt(problem.weights)
    targets = fitted * np.exp(deviations) if problem.objective.log else fitted + deviations
    return problem.draws(STUDENT, targets, problem.weights, scale * random.normal(size=count))


def ranks(jacobian: Array, times: Array) -> Array:
    """How many numbers each resample determines: the rank of the Jacobian whose rows are taken so many `times`."""
    scaled = jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    products = np.matmul(times, (scaled[:, :, None] * scaled[:, None, :]).reshape(len(scaled), -1))
    values = np.linalg.eigvalsh(products.reshape(len(times), scaled.shape[1], -1))
    return np.asarray(np.sum(values > 1e-12 * values.max(axis=1, initial=0.0, keepdims=True), axis=1))
