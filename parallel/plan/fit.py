"""Constants of a recipe on a machine, fitted on measured rows.

Residuals are log(predicted / measured). Rows far off weigh little (Cauchy, scale 10 %): a published sweep has runs that a sick
node slowed tenfold. Damped Gauss-Newton steps over the logarithms of the constants, inside their bounds. Needs numpy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from parallel.plan.job import Job
from parallel.plan.memory import GIB, rank_memory
from parallel.plan.recipe import BOUNDS
from parallel.plan.rows import Row
from parallel.plan.step_time import step_parts

Values = dict[str, float]
"""constant -> value; `fabric.constant` for one that holds in a state of the node's links alone"""

TIME = (
    "matmul_efficiency",
    "matmul_half",
    "attention_efficiency",
    "traffic",
    "node_efficiency",
    "network_efficiency",
    "tensor_overlap",
    "data_overlap",
    "layer_seconds",
    "hop_seconds",
    "network_hop_seconds",
    "message_seconds",
    "step_seconds",
)
MEMORY = ("activation_scale", "gathered", "slack_gib")

SCALE = 0.1
PRIOR = 0.05
"""Weight of a constant's distance (in e-folds) from where the fit starts: what the rows say nothing about stays there."""


def with_values(job: Job, values: Mapping[str, float]) -> Job:
    """The job with these constants; the others stay."""
    plain = {name: value for name, value in values.items() if "." not in name}
    for name, value in values.items():
        fabric, _, constant = name.rpartition(".")
        if fabric and fabric == job.measured.fabric:
            plain[constant] = value
    return replace(job, constants=replace(job.constants, **plain))


def speed(job: Job) -> float:
    """Predicted tokens/s of a device."""
    return job.batch_sequences * job.sequence / step_parts(job)["total"] / job.choice.gpus


def first_rank_gib(job: Job) -> float:
    """Predicted GiB on the first pipeline rank, which is where tables are measured."""
    return rank_memory(job, 0)["total"] / GIB


def fit(
    rows: Sequence[Row],
    start: Values,
    predict: Callable[[Job], float],
    measured: Callable[[Row], float | None],
    *,
    rounds: int = 25,
) -> Values:
    """The values of the constants in `start` that predict the measured rows best."""
    usable = [row for row in rows if row.ran and (measured(row) or 0) > 0]
    names = list(start)
    bounds = np.array([_bounds(name) for name in names])
    target = np.log([float(measured(row) or 1) for row in usable])

    def residuals(point: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        values = dict(zip(names, (float(value) for value in np.exp(point)), strict=True))
        return np.array([np.log(predict(with_values(row.job, values))) for row in usable]) - target

    prior = PRIOR**2 * len(usable) ** 0.5

    def cost(misses: np.ndarray[Any, Any], point: np.ndarray[Any, Any]) -> float:
        return float(SCALE**2 * np.sum(np.log1p((misses / SCALE) ** 2)) + prior * np.sum((point - begin) ** 2))

    begin = np.clip(np.log([max(start[name], 1e-9) for name in names]), bounds[:, 0], bounds[:, 1])
    point, misses, damping = begin.copy(), residuals(begin), 1e-2
    for _ in range(rounds):
        slopes = np.empty((len(usable), len(names)))
        for column in range(len(names)):
            moved = point.copy()
            moved[column] += 0.03 if point[column] + 0.03 <= bounds[column, 1] else -0.03
            slopes[:, column] = (residuals(moved) - misses) / (moved[column] - point[column])
        weights = 1 / (1 + (misses / SCALE) ** 2)
        square = slopes.T @ (weights[:, None] * slopes) + prior * np.eye(len(names))
        downhill = slopes.T @ (weights * misses) + prior * (point - begin)
        for _ in range(6):
            step = np.linalg.solve(
                square + damping * np.diag(np.diag(square) + 1e-3 * np.trace(square) / len(names) + 1e-12), downhill
            )
            trial = np.clip(point - np.clip(step, -1.0, 1.0), bounds[:, 0], bounds[:, 1])
            trial_misses = residuals(trial)
            if (gained := cost(misses, point) - cost(trial_misses, trial)) > 0:
                point, misses, damping = trial, trial_misses, max(damping / 4, 1e-6)
                break
            damping *= 5
        else:
            break
        if gained < 1e-4 * cost(misses, point):
            break
    return dict(zip(names, (float(value) for value in np.exp(point)), strict=True))


def _bounds(name: str) -> tuple[float, float]:
    low, high, _ = BOUNDS[name.rpartition(".")[2]]
    return float(np.log(max(low, 1e-9))), float(np.log(high))
