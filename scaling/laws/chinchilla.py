"""Loss as a function of size and tokens. Loss is nats per token."""

from typing import Any

import numpy as np

from scaling.laws.base.budget import Budget
from scaling.laws.base.columns import Columns, from_size_and_tokens, one_size_or_ratio
from scaling.laws.base.law import Law, Parameter
from scaling.laws.base.picture import SAME, Contours, Fitted, Line, Panel, Picture, Points, groups


def chinchilla(parameters: Any, tokens: Any, *, E: Any, A: Any, B: Any, alpha: Any, beta: Any) -> Any:  # noqa: D103
    return E + A * parameters**-alpha + B * tokens**-beta


def _study() -> Columns:
    """48 runs: eight sizes from 10 M to 3 B, six ratios from 2.5 to 640 tokens per parameter."""
    size, ratio = np.meshgrid(np.geomspace(1e7, 3e9, 8), np.geomspace(2.5, 640, 6))
    return from_size_and_tokens(size.ravel(), (size * ratio).ravel())


_RUNS_OF_A_BUDGET = 3


def _picture(fit: Fitted) -> Picture:
    flops = np.sort(6.0 * fit.columns["parameters"] * fit.columns["tokens"])
    budgets = 1 + np.sum(np.diff(np.log(flops)) > SAME)
    checkpoints = fit.labels.max() + 1 < len(flops)
    if len(flops) >= _RUNS_OF_A_BUDGET * budgets and not checkpoints:
        left, text = _iso_flop_curves(fit), "loss against size at equal compute; runs moved to the compute of their curve"
    else:
        left, text = _curves_of_sizes(fit), "loss against tokens, a line for every size; runs moved to the size of their curve"
    return Picture(
        caption=f"Left: {text} along the law. Right: lines of equal loss, and the best way through them.",
        panels=(left, _equal_losses(fit)),
        width=12,
    )


def _curves_of_sizes(fit: Fitted) -> Panel:
    size, tokens, loss = fit.columns["parameters"], fit.columns["tokens"], fit.target
    marks: list[Line | Points] = []
    for index, (one, part) in enumerate(groups(size)):
        spread = np.geomspace(tokens[part].min() / 1.5, tokens[part].max() * 1.5, 80)
        at_the_curve = fit.curve(from_size_and_tokens(np.full(len(part), one), tokens[part]))
        marks.append(Line(x=spread, y=fit.curve(from_size_and_tokens(np.full_like(spread, one), spread)), dashes=index))
        marks.append(
            Points(x=tokens[part], y=at_the_curve + loss[part] - fit.fitted[part], group=index, label=f"{one:.2e}", size=4)
        )
    return Panel(
        marks=tuple(marks),
        xlabel="tokens",
        ylabel="loss (nats per token)",
        title="loss against tokens",
        legend="parameters (mean of group)",
        log="x",
    )


def _iso_flop_curves(fit: Fitted) -> Panel:
    size, tokens, loss = fit.columns["parameters"], fit.columns["tokens"], fit.target
    marks: list[Line | Points] = []
    for index, (flops, part) in enumerate(groups(6.0 * size * tokens)):
        spread = np.geomspace(size[part].min() / 1.5, size[part].max() * 1.5, 80)
        curve = fit.curve(from_size_and_tokens(spread, flops / (6.0 * spread)))
        # Runs of a group differ in compute: what is shown is their distance from the law, at the curve's compute.
        at_the_curve = fit.curve(from_size_and_tokens(size[part], flops / (6.0 * size[part])))
        moved = at_the_curve + loss[part] - fit.fitted[part]
        marks.append(Line(x=spread, y=curve, dashes=index))
        marks.append(Points(x=size[part], y=moved, group=index, label=f"{flops:.1e}", size=5))
    return Panel(
        marks=tuple(marks),
        xlabel="parameters",
        ylabel="loss (nats per token)",
        title="iso-FLOP curves",
        legend="FLOPs (mean of group)",
        log="x",
    )


def _equal_losses(fit: Fitted) -> Panel:
    size, tokens = fit.columns["parameters"], fit.columns["tokens"]
    wide = np.geomspace(size.min() / 2, size.max() * 4, 120), np.geomspace(tokens.min() / 2, tokens.max() * 4, 120)
    grid = np.meshgrid(*wide)
    value = fit.curve(from_size_and_tokens(grid[0].ravel(), grid[1].ravel())).reshape(grid[0].shape)
    budgets = np.geomspace((6 * size * tokens).min(), (6 * size * tokens).max() * 10, 30)
    best = np.array([CHINCHILLA.best_runs(fit.theta[None], Budget(float(flops))).parameters[0] for flops in budgets])
    return Panel(
        marks=(
            Contours(x=grid[0], y=grid[1], value=value, levels=np.quantile(value, np.linspace(0.03, 0.9, 9))),
            Points(x=size, y=tokens, label="runs", size=4),
            Line(x=best, y=budgets / (6 * best), dashes=1, width=2, label="best for its FLOPs"),
        ),
        xlabel="parameters",
        ylabel="tokens",
        title="lines of equal loss",
        log="xy",
        xlim=(wide[0][0], wide[0][-1]),
        ylim=(wide[1][0], wide[1][-1]),
    )


CHINCHILLA = Law(
    name="chinchilla",
    formula=chinchilla,
    text="loss = E + A / parameters^alpha + B / tokens^beta",
    source="Hoffmann et al., arXiv 2203.15556, equation 2 (approach 3)",
    needs="at least six runs, more than one size and more than one ratio of tokens to parameters",
    parameters={
        "E": Parameter(starts=(0.5, 1.0, 2.0)),
        "A": Parameter(starts=(1e1, 1e2, 1e3, 1e4), log=True),
        "B": Parameter(starts=(1e1, 1e2, 1e3, 1e4), log=True),
        "alpha": Parameter(starts=(0.2, 0.5, 0.8), high=10.0),
        "beta": Parameter(starts=(0.2, 0.5, 0.8), high=10.0),
    },
    remarks=one_size_or_ratio,
    picture=_picture,
    truth={"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
    design=_study,
    beyond=from_size_and_tokens(2e10, 4e11),
)
