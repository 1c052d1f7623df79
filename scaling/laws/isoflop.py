"""The size that a budget asks for, from the optima of several budgets. flops count as the table counts them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from scaling.laws.base.budget import BestRuns, Budget
from scaling.laws.base.columns import Columns
from scaling.laws.base.dual import Array
from scaling.laws.base.law import SIZE, Law, Parameter
from scaling.laws.base.picture import Fitted, Panel, Picture, Points, band, sweeps


def isoflop(flops: Any, *, size_exponent: Any, size_coefficient: Any) -> Any:  # noqa: D103
    return size_coefficient * flops**size_exponent


def _best_runs(theta: Array, budget: Budget, *, measured: Mapping[str, float], **_: Any) -> BestRuns:
    """For compute alone, counted as the fitted runs count it: the law knows neither losses nor what a smaller model costs."""
    size = ISOFLOP.value(theta, {"flops": np.array([budget.flops])})[:, 0]
    return BestRuns(parameters=size, tokens=budget.flops ** (1.0 - measured["drift"]) / (measured["per_token"] * size))


def _compute(columns: Columns) -> dict[str, float]:
    """How the table counts compute: flops = per_token flops^drift parameters tokens, drift and per_token fitted to the optima.

    6 and 0 where flops are 6 parameters tokens, or where the optima's tokens are not known.
    """
    if not {"flops", "parameters", "tokens"} <= set(columns):
        return {"per_token": 6.0, "drift": 0.0}
    flops, each = np.log(columns["flops"]), np.log(columns["flops"] / (columns["parameters"] * columns["tokens"]))
    spread = flops - flops.mean()
    drift = float(spread @ each / (spread @ spread)) if np.ptp(flops) > 0 else 0.0
    return {"per_token": float(np.exp(each.mean() - drift * flops.mean())), "drift": drift}


def _picture(fit: Fitted) -> Picture:
    flops = fit.columns["flops"]
    reach = np.geomspace(flops.min() / 2, flops.max() * 30, 60)
    return Picture(
        caption="Left: the parabolas whose minima are fitted. Right: these sizes, with the law and its 95 % interval.",
        panels=(
            *sweeps(fit, "parameters", "budgets and their parabolas"),
            Panel(
                marks=(
                    band(fit, reach, {"flops": reach}, f"slope {fit.values()['size_exponent']:.3f}"),
                    Points(x=flops, y=fit.target, label="optimum of a budget"),
                ),
                xlabel="training FLOPs",
                ylabel="best number of parameters",
                title="the best size for a budget",
                log="xy",
            ),
        ),
        width=12 if len(fit.sweeps) else 8,
    )


def _budgets() -> Columns:
    return {"flops": np.geomspace(6e18, 3e21, 9)}


ISOFLOP = Law(
    name="isoflop",
    formula=isoflop,
    text="best size = size_coefficient flops^size_exponent  (tokens: the rest of flops = 6 parameters tokens)",
    source="Hoffmann et al., arXiv 2203.15556, section 3.2 (approach 2)",
    needs="at least three budgets with at least four sizes each, on both sides of the lowest loss",
    parameters={
        "size_exponent": Parameter(starts=(0.3, 0.5, 0.7), low=-1.0, high=2.0),
        "size_coefficient": Parameter(starts=(1e-3, 1e-1, 1e1), log=True),
    },
    derived={
        "tokens_exponent": lambda values: 1.0 - values["drift"] - values["size_exponent"],
        "tokens_coefficient": lambda values: 1.0 / (values["per_token"] * values["size_coefficient"]),
    },
    measured=_compute,
    target="parameters",
    objective="least-squares",
    log_residuals=True,
    optimum_of="parameters",
    group_by=("flops",),
    group_tolerance=0.05,
    answers=SIZE,
    best=_best_runs,
    picture=_picture,
    truth={"size_exponent": 0.49, "size_coefficient": 0.14},
    design=_budgets,
    beyond={"flops": 1e24},
)
