"""One batched solver for everything that is fitted: many starts, many resamples, many left-out runs, at once.

A damped Newton method (Levenberg 1944, Marquardt 1963) on the objective

    F(theta) = sum_i w_i rho(r_i),   r_i = log prediction - log target   (huber-log, rho of Huber 1964 with delta 1e-3)
                                     r_i = prediction - target           (least-squares, rho = r^2)

over a batch of independent problems that share a law and its runs and differ in start, weights or targets. With J the Jacobian
of r, the Hessian is taken as J' diag(w rho'') J: only residuals within delta bend Huber's loss. Where that says too little (far
from the optimum nobody is within delta) the damping does the rest: lambda times J' diag(w rho'/r) J, the matrix of iteratively
reweighted least squares, plus its diagonal. Steps are accepted only if the exact F falls. F is a sum, never a mean: a mean
makes every gradient small and stops solvers early.
"""

from dataclasses import dataclass

import numpy as np

from scaling.laws.base.columns import Columns
from scaling.laws.base.dual import Array
from scaling.laws.base.law import Law, ObjectiveName

HUBER_DELTA = 1e-3
"""Hoffmann et al. (arXiv 2203.15556), section 3.3."""

_CHUNK = 40_000  # (problems x runs) worked on at once: what stays in a core's cache
_MAX_ITERATIONS = 300
_RELATIVE_DECREASE = 1e-11
_LAMBDA_START, _LAMBDA_MAX, _LAMBDA_MIN = 1e-2, 1e9, 1e-9
_UNSEEN = 1e-13  # of a prediction: what is smaller is rounding


@dataclass(frozen=True)
class Objective:
    """What is minimised."""

    name: ObjectiveName
    log: bool
    """residuals are differences of logarithms"""
    delta: float = HUBER_DELTA
    """of Huber's loss: where its parabola ends"""

    @staticmethod
    def of(law: Law, name: ObjectiveName | None, delta: float | None = None) -> "Objective":
        """The law's own where `name` is None."""
        chosen = name or law.objective
        return Objective(chosen, chosen == "huber-log" or law.log_residuals, delta or HUBER_DELTA)

    def residuals(self, predicted: Array, target: Array) -> Array:
        """r."""
        return np.asarray(np.log(predicted / target) if self.log else predicted - target)

    def value(self, residuals: Array, weights: Array) -> Array:
        """F, per problem; infinite where a residual is no number."""
        if self.name == "least-squares":
            total: Array = np.sum(weights * residuals**2, axis=-1)
        else:
            size = np.abs(residuals)
            inside = np.minimum(size, self.delta)
            total = np.sum(weights * inside * (size - 0.5 * inside), axis=-1)
        return np.where(np.isnan(total), np.inf, total)

    def slopes(self, residuals: Array) -> tuple[Array, Array, Array]:
        """rho', rho'' and rho'/r, up to the same factor."""
        if self.name == "least-squares":
            one = np.ones_like(residuals)
            return 2.0 * residuals, 2.0 * one, 2.0 * one
        size = np.abs(residuals)
        inside = size <= self.delta
        reweighted: Array = self.delta / np.maximum(size, self.delta)
        return np.clip(residuals, -self.delta, self.delta), inside.astype(np.float64), reweighted


@dataclass(frozen=True)
class Solutions:
    """One optimum per problem."""

    solver: Array
    """(problems, parameters), solver units"""
    objective: Array
    """(problems,)"""
    converged: Array
    """(problems,) of bool"""


def solve(
    law: Law,
    objective: Objective,
    columns: Columns,
    target: Array,
    starts: Array,
    *,
    weights: Array | None = None,
    fixed: frozenset[str] = frozenset(),
) -> Solutions:
    """Minimise from every row of `starts` (problems, parameters; solver units).

    Fixed parameters keep the values they start with; `target` and `weights` are (runs,) or (problems, runs).
    """
    problems, runs = len(starts), target.shape[-1]
    free = tuple(index for index, name in enumerate(law.names) if name not in fixed)
    weights = np.ones(runs) if weights is None else weights
    used = {name: np.asarray(columns[name], dtype=np.float64) for name in law.columns}
    solutions = Solutions(starts.copy(), np.full(problems, np.inf), np.zeros(problems, dtype=bool))
    size = max(1, _CHUNK // runs)
    for first in range(0, problems, size):
        part = slice(first, min(first + size, problems))
        chunk = _Chunk(law, objective, used, _rows(target, part), _rows(weights, part), free)
        solutions.solver[part], solutions.objective[part], solutions.converged[part] = chunk.run(starts[part])
    return solutions


def _rows(values: Array, part: slice) -> Array:
    return values[part] if values.ndim == 2 else np.broadcast_to(values, (part.stop - part.start, len(values)))


class _Chunk:
    """Some problems, solved together; those that are done leave the batch."""

    def __init__(
        self, law: Law, objective: Objective, columns: Columns, target: Array, weights: Array, free: tuple[int, ...]
    ) -> None:
        self.law, self.objective, self.columns, self.free = law, objective, columns, free
        self.target, self.weights = target, weights
        bounds = np.array([parameter.solver_bounds for parameter in law.parameters.values()])[list(free)]
        self.low, self.high = bounds[:, 0], bounds[:, 1]
        self.logarithmic = np.array([parameter.log for parameter in law.parameters.values()])[list(free)]

    def run(self, starts: Array) -> tuple[Array, Array, Array]:
        theta_out, value_out, converged_out = starts.copy(), np.full(len(starts), np.inf), np.zeros(len(starts), dtype=bool)
        if not self.free:
            predicted = self.law.value(self.law.from_solver(starts), self.columns)
            return theta_out, self.objective.value(self._residuals(predicted), self.weights), np.ones(len(starts), dtype=bool)
        active = np.arange(len(starts))
        theta = starts.copy()
        theta[:, self.free] = np.clip(theta[:, self.free], self.low, self.high)
        damping = np.full(len(starts), _LAMBDA_START)
        value, residuals, jacobian = self._evaluate(theta)
        for _ in range(_MAX_ITERATIONS):
            with np.errstate(all="ignore"):  # the solver refuses steps that are not finite
                trial, predicted_decrease = self._step(theta, residuals, jacobian, damping)
            trial_value, trial_residuals, trial_jacobian = self._evaluate(trial)
            better = trial_value < value
            # A step that promises nothing is the optimum; one that fails at the strongest damping cannot be improved.
            done = (predicted_decrease <= _RELATIVE_DECREASE * value) | (value <= 1e-28)
            done &= better | (trial_value <= value * (1 + 1e-9)) | (value <= 1e-28)
            stuck = ~better & (damping >= _LAMBDA_MAX)
            theta[better], value[better] = trial[better], trial_value[better]
            residuals[better], jacobian[better] = trial_residuals[better], trial_jacobian[better]
            damping = np.clip(np.where(better, damping / 5.0, damping * 4.0), _LAMBDA_MIN, _LAMBDA_MAX)
            leaving = done | stuck
            if leaving.any():
                where = active[leaving]
                theta_out[where], value_out[where], converged_out[where] = theta[leaving], value[leaving], done[leaving]
                stay = ~leaving
                active, theta, value, damping = active[stay], theta[stay], value[stay], damping[stay]
                residuals, jacobian = residuals[stay], jacobian[stay]
                self.target, self.weights = self.target[stay], self.weights[stay]
                if not len(active):
                    break
        theta_out[active], value_out[active] = theta, value
        return theta_out, value_out, converged_out

    def _residuals(self, predicted: Array) -> Array:
        with np.errstate(all="ignore"):
            return self.objective.residuals(predicted, self.target)

    def _evaluate(self, theta: Array) -> tuple[Array, Array, Array]:
        """F, r and the Jacobian of r, by the free parameters."""
        with np.errstate(all="ignore"):
            predicted, jacobian = self.law.value_and_jacobian(theta, self.columns, self.free)
            residuals = self.objective.residuals(predicted, self.target)
            if self.objective.log:
                jacobian /= predicted[:, None, :]
            value = self.objective.value(residuals, self.weights)
        return value, residuals, jacobian

    def _step(self, theta: Array, residuals: Array, jacobian: Array, damping: Array) -> tuple[Array, Array]:
        """The damped Newton step inside the bounds, and the decrease of F that the model promises."""
        slope, curvature, reweighted = self.objective.slopes(residuals)
        gradient = np.matmul(jacobian, (self.weights * slope)[:, :, None])[:, :, 0]
        # Hessian plus damping times the reweighted matrix: one product, with the sum of their weights.
        bent = self.weights * (curvature + damping[:, None] * reweighted)
        matrix = np.matmul(jacobian * bent[:, None, :], jacobian.transpose(0, 2, 1))
        counted = self.weights * reweighted
        diagonal = np.matmul(jacobian * jacobian, counted[:, :, None])[:, :, 0]
        # A parameter at a bound whose gradient points beyond it does not move in this step.
        at = theta[:, self.free]
        held = ((at <= self.low) & (gradient > 0)) | ((at >= self.high) & (gradient < 0))
        # Nor does a coefficient whose term is lost in rounding: the slope of its logarithm would ask for endless steps.
        total = np.sum(counted if self.objective.log else counted * (residuals + self.target) ** 2, axis=1, keepdims=True)
        held |= self.logarithmic & (diagonal < _UNSEEN**2 * total)
        scale = 1.0 / np.sqrt(np.maximum(diagonal, 1e-300))
        scale = np.where((diagonal > 0) & np.isfinite(diagonal), scale, 0.0) * ~held
        both = scale[:, :, None] * scale[:, None, :]
        matrix *= both
        identity = np.eye(len(self.free))
        matrix += identity * (damping[:, None, None] * (1.0 + 1e-3) + 1e-13 + (scale == 0)[:, None, :])
        scaled_gradient = np.where(np.isfinite(gradient), gradient, 0.0) * scale
        matrix = np.where(np.isfinite(matrix), matrix, identity)
        step = -np.linalg.solve(matrix, scaled_gradient[:, :, None])[:, :, 0]
        decrease = -0.5 * np.sum(step * scaled_gradient, axis=1)
        trial = theta.copy()
        trial[:, self.free] = np.clip(at + step * scale, self.low, self.high)
        return trial, decrease
