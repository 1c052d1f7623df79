"""From runs to optima: among otherwise equal runs, at which setting is the loss lowest?

Laws of optima (`Law.optimum_of`) are fitted to these. A parabola through loss against the logarithm of the setting
(of f / (1 - f) for a fraction) gives each group's optimum: Hoffmann et al., arXiv 2203.15556, section 3.2.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from scaling.laws.base.columns import SHARES
from scaling.laws.base.dual import Array
from scaling.laws.base.law import Law
from scaling.runs.rows import LeftOut

SETTINGS = 3
"""How many different ones a parabola needs."""


class Optima(NamedTuple):
    """What groups of otherwise equal runs come to."""

    rows: pd.DataFrame
    """one per group, with the group's best setting in the law's target column"""
    left_out: list[LeftOut]
    remarks: list[str]
    sweeps: pd.DataFrame
    """what the parabolas went through: `name` of the group, `setting`, `loss`, `curve` (the parabola; NaN beyond its runs)"""


_NO_SWEEPS = pd.DataFrame({"name": [], "setting": [], "loss": [], "curve": []})


def best_settings(law: Law, frame: pd.DataFrame) -> Optima:
    """One row per group of otherwise equal runs.

    Groups without an optimum between their settings are left out, with a reason; a run that stands alone is no optimum.
    Where the table has no losses, its rows are optima as they stand.
    """
    assert law.optimum_of is not None
    if "loss" not in frame.columns:
        return Optima(frame, [], ["no column loss: every row is taken to be an optimum"], _NO_SWEEPS)
    keys = [key for key in law.group_by if key in frame.columns and key != law.optimum_of]
    labels = [_equal_within(frame[key].to_numpy(dtype=float), law.group_tolerance) for key in keys]
    rows, left_out, alone, sweeps = [], [], 0, [_NO_SWEEPS]
    groups = list(frame.groupby(labels))
    for _, group in groups:
        name = ", ".join(f"{key}={group[key].mean():.4g}" for key in keys)
        best, problem, sweep = _best(law, group)
        if best is None:
            left_out.append(LeftOut(f"{len(group)} run{'s' * (len(group) > 1)} at {name}", problem))
            alone += group[law.optimum_of].nunique() < SETTINGS
            continue
        row = group.sort_values("loss").iloc[0].copy()
        for key in keys:
            row[key] = np.exp(np.log(group[key]).mean())
        if law.optimum_of == "parameters" and "tokens" in row.index:  # the rest of the same budget
            row["tokens"] *= row["parameters"] / best
            row["tokens_per_parameter"] = row["tokens"] / best
        row["name"], row[law.optimum_of] = name, best
        rows.append(row)
        sweeps.append(sweep.assign(name=name))
    optima = pd.DataFrame(rows).reset_index(drop=True) if rows else frame.iloc[:0]
    remarks = []
    if alone:
        remarks.append(
            f"{alone} of {len(groups)} groups of equal {' and '.join(keys)} have fewer than {SETTINGS} settings of "
            f"{law.optimum_of} and were left out: an optimum lies between settings"
        )
    return Optima(optima, left_out, remarks, pd.concat(sweeps[1:] or sweeps, ignore_index=True))


def _equal_within(values: Array, tolerance: float) -> Array:
    """A label per value; neighbours on the logarithmic axis that are no further apart than the tolerance share it."""
    order = np.argsort(values)
    steps = np.diff(np.log(values[order])) > tolerance
    labels = np.empty(len(values))
    labels[order] = np.concatenate([[0], np.cumsum(steps)])
    return labels


def _best(law: Law, group: pd.DataFrame) -> tuple[float | None, str, pd.DataFrame]:
    """The best setting (None: why there is none), and the points with their parabola."""
    assert law.optimum_of is not None
    setting = group[law.optimum_of].to_numpy(dtype=float)
    loss = group["loss"].to_numpy(dtype=float)
    share = law.optimum_of in SHARES
    inside = np.isfinite(loss) & ((setting > 0) & (setting < 1) if share else True)
    setting, loss = setting[inside], loss[inside]
    count = len(np.unique(setting))
    if count < SETTINGS:
        return None, f"{count} setting{'s' * (count != 1)} of {law.optimum_of}; a parabola needs three", _NO_SWEEPS
    # Runs at one setting (other seeds) are one point, their mean: a window of repetitions would hold no parabola.
    setting, which = np.unique(setting, return_inverse=True)
    loss = np.bincount(which, loss) / np.bincount(which)
    axis = np.log(setting / (1.0 - setting)) if share else np.log(setting)
    lowest = int(np.argmin(loss))
    reach = len(axis) if law.window is None else law.window // 2
    near = slice(max(0, min(lowest - reach, len(axis) - SETTINGS)), max(lowest + reach + 1, SETTINGS))
    middle = axis[near].mean()
    numbers = np.polyfit(axis[near] - middle, loss[near], 2)
    curve = np.full(len(axis), np.nan)
    curve[near] = np.polyval(numbers, axis[near] - middle)
    sweep = pd.DataFrame({"setting": setting, "loss": loss, "curve": curve})
    curvature, slope, _ = numbers
    vertex = middle - slope / (2.0 * curvature) if curvature > 0 else np.nan
    if not axis[0] <= vertex <= axis[-1]:
        edge = "smallest" if loss[0] < loss[-1] else "largest"
        return None, f"the loss has no minimum between the settings of {law.optimum_of} (lowest near the {edge})", sweep
    return float(1.0 / (1.0 + np.exp(-vertex)) if share else np.exp(vertex)), "", sweep
