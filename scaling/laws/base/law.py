"""What a law is: a formula, its parameters with bounds and starts, and all that the other rooms ask of a law.

What a plan takes it for, its best run in a budget, its picture, its study for simulations: a law says it here or takes the
default, so that no other file needs to know which law it has.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from common.errors import UserError
from scaling.laws.base.budget import BestRuns, Budget, best_ratios
from scaling.laws.base.columns import SIZE_COLUMNS, Columns
from scaling.laws.base.dual import Array, Dual
from scaling.laws.base.picture import Fitted, Picture

VANISHED = 1e-40
"""A coefficient so small is zero: the runs do not need its term."""

ObjectiveName = Literal["huber-log", "least-squares"]

SIZE, QUANTIZATION, RATE, ERROR = "the size", "quantization", "the learning rate", "the error on tasks"
"""The questions of a plan, which takes one law for each."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One number of a law."""

    starts: tuple[float, ...]
    """values it starts from; the starting grid is the product over all parameters"""
    low: float = 0.0
    """lower bound"""
    high: float = math.inf
    """upper bound"""
    log: bool = False
    """solved for in its logarithm, which keeps it positive and makes factors of it equally far apart"""

    def to_solver(self, value: Any) -> Any:
        """Natural units to the solver's."""
        return np.log(value) if self.log else np.asarray(value, dtype=np.float64)

    def from_solver(self, value: Any) -> Any:
        """The solver's units to natural ones."""
        return np.exp(value) if self.log else value

    @property
    def solver_bounds(self) -> tuple[float, float]:
        """The bounds in the solver's units. A logarithm ends where the number is nothing to any law (`VANISHED`)."""
        if not self.log:
            return self.low, self.high
        return math.log(max(self.low, VANISHED)), math.log(min(self.high, 1.0 / VANISHED))


def no_remarks(columns: Columns) -> list[str]:
    """A law that asks for nothing but enough runs."""
    return []


def nothing_measured(columns: Columns) -> dict[str, float]:
    """A law whose derived numbers follow from its parameters alone."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Law:
    """A law. The formula's positional arguments are columns of the runs, its keyword-only ones the law's parameters.

    The formula must be analytic in its parameters and written with numpy's arithmetic (`scaling.laws.base.dual`); it is
    called with arrays that broadcast.
    """

    name: str
    formula: Callable[..., Any]
    parameters: Mapping[str, Parameter]
    text: str = ""
    """the formula as people write it"""
    source: str = ""
    """paper and equation"""
    needs: str = ""
    """what the data must vary to determine the parameters, in words"""
    target: str = "loss"
    """the column the formula gives"""
    objective: ObjectiveName = "huber-log"
    """unless the user says another"""
    log_residuals: bool = False
    """least squares is on the target's logarithm"""
    remarks: Callable[[Columns], list[str]] = no_remarks
    """why these runs cannot identify the law, in plain words"""
    answers: str | None = None
    """which question of a plan (`SIZE`, ...); unless given, `SIZE` for a loss law of size and tokens alone"""
    best: Callable[..., BestRuns] | None = None
    """in place of the search of `best_runs`: (theta, budget, cap=, bits=, quick=, measured=) -> the best runs"""
    best_fraction: Callable[[Array, Columns], Array] | None = None
    """the QAT fraction of lowest loss at every setting of a study, (vectors, settings), for parameters (vectors, parameters)"""
    picture: Callable[[Fitted], Picture] | None = None
    """what a report draws of a fit, beside the residuals and intervals that it draws of any"""
    derived: Mapping[str, Callable[[Mapping[str, Any]], Any]] = field(default_factory=dict)
    """numbers that follow from the parameters and are reported with them"""
    measured: Callable[[Columns], Mapping[str, float]] = nothing_measured
    """numbers that `derived` takes beside the parameters: how the runs count something, not fitted and without noise"""
    optimum_of: str | None = None
    """the target is the value of this column at which the loss of otherwise equal runs is lowest"""
    group_by: tuple[str, ...] = ()
    """which runs are otherwise equal"""
    group_tolerance: float = 0.02
    """values whose logarithms are no further apart than this are equal"""
    window: int | None = None
    """the parabola goes through so many runs around the lowest; None: through all of them"""
    num_starts: int | None = None
    """start from so many random draws from the boxes that `starts` spans, not from the grid"""
    truth: Mapping[str, float] = field(default_factory=dict)
    """constants for simulations"""
    design: Callable[[], Columns] | None = None
    """columns of a typical study, for simulations"""
    noise: float = 0.003
    """standard deviation in simulations: of the target's logarithm under huber-log or `log_residuals`, else of the target"""
    beyond: Mapping[str, Any] = field(default_factory=dict)
    """columns of a run far beyond the design, for simulations of a forecast"""

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """What the formula takes from a run."""
        arguments = inspect.signature(self.formula).parameters.values()
        return tuple(argument.name for argument in arguments if argument.kind is argument.POSITIONAL_OR_KEYWORD)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters, in their order."""
        return tuple(self.parameters)

    def check_values(self, values: Mapping[str, float], option: str) -> None:
        """Refuse values of parameters that the law does not have, or that lie outside their bounds.

        Raises:
            UserError: there is one; the message begins with `option`.
        """
        for name, value in values.items():
            if name not in self.parameters:
                raise UserError(f"{option} {name}={value:g}: {self.name} has no such parameter; it has {', '.join(self.names)}")
            parameter = self.parameters[name]
            if not parameter.low <= value <= parameter.high or (parameter.log and value <= 0):
                raise UserError(f"{option} {name}={value:g}: {name} must lie between {parameter.low:g} and {parameter.high:g}")

    @property
    def role(self) -> str | None:
        """The question of a plan that it answers; None: a plan has no use for it."""
        sizes = self.target == "loss" and set(self.columns) <= set(SIZE_COLUMNS)
        return self.answers or (SIZE if sizes else None)

    def best_runs(
        self,
        theta: Array,
        budget: Budget,
        *,
        cap: float | None = None,
        bits: float | None = None,
        quick: bool = False,
        measured: Mapping[str, float] | None = None,
    ) -> BestRuns:
        """The run of lowest loss within a budget, for each of the parameter vectors `theta` (vectors, parameters).

        Args:
            theta: natural units.
            budget: what is spent, all of it.
            cap: the most parameters that the model may have.
            bits: width of a weight, for a law that depends on it.
            quick: a coarser search of some of the vectors is enough, because only their spread is asked for.
            measured: `measured` of the fitted runs, where there are any.
        """
        if self.best is not None:
            counted = self.measured({}) if measured is None else measured
            return self.best(theta, budget, cap=cap, bits=bits, quick=quick, measured=counted)
        ratio, loss = best_ratios(self.value, theta, budget, cap)
        size = budget.size(ratio)
        return BestRuns(parameters=size, tokens=ratio * size, loss=loss)

    def value(self, theta: Array, columns: Columns) -> Array:
        """The target (batch, runs), for parameters (batch, parameters; natural units) and columns (runs,) or (batch, runs)."""
        values = {name: theta[:, index, None] for index, name in enumerate(self.names)}
        result = self.formula(*(columns[name] for name in self.columns), **values)
        return np.broadcast_to(np.asarray(result, dtype=np.float64), (len(theta), _length(columns, self.columns)))

    def value_and_jacobian(self, solver: Array, columns: Columns, free: tuple[int, ...]) -> tuple[Array, Array]:
        """The same for solver units, with derivatives by the `free` parameters in solver units, shape (batch, free, runs)."""
        values: dict[str, Any] = {}
        for index, (name, parameter) in enumerate(self.parameters.items()):
            value = parameter.from_solver(solver[:, index, None])
            slope = value if parameter.log else 1.0
            values[name] = Dual(value, {index: slope}) if index in free else value
        result = self.formula(*(columns[name] for name in self.columns), **values)
        shape = (len(solver), _length(columns, self.columns))
        jacobian = np.zeros((shape[0], len(free), shape[1]))
        if not isinstance(result, Dual):
            return np.broadcast_to(result, shape), jacobian
        for row, index in enumerate(free):
            if index in result.parts:
                jacobian[:, row] = result.parts[index]
        return np.broadcast_to(result.value, shape), jacobian

    def starting_points(self, seed: int) -> Array:
        """The starts in natural units, shape (starts, parameters)."""
        if self.num_starts is None:
            return np.array(list(itertools.product(*(parameter.starts for parameter in self.parameters.values()))))
        random = np.random.default_rng(seed)
        columns = []
        for parameter in self.parameters.values():
            low, high = parameter.to_solver(min(parameter.starts)), parameter.to_solver(max(parameter.starts))
            columns.append(parameter.from_solver(random.uniform(low, high, self.num_starts)))
        return np.stack(columns, axis=1)

    def to_solver(self, theta: Array) -> Array:
        """Parameter vectors (..., parameters) in solver units."""
        return np.stack([p.to_solver(theta[..., i]) for i, p in enumerate(self.parameters.values())], axis=-1)

    def from_solver(self, solver: Array) -> Array:
        """Parameter vectors (..., parameters) in natural units."""
        return np.stack([p.from_solver(solver[..., i]) for i, p in enumerate(self.parameters.values())], axis=-1)


def _length(columns: Columns, names: tuple[str, ...]) -> int:
    return max((np.shape(columns[name])[-1] if np.ndim(columns[name]) else 1 for name in names), default=1)
