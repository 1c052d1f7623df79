"""Loss as a function of compute and tokens per parameter: Chinchilla's form with alpha = beta. Loss is nats per token."""

from typing import Any

import numpy as np

from scaling.laws.base.columns import Columns, from_size_and_tokens, one_size_or_ratio
from scaling.laws.base.law import Law, Parameter
from scaling.laws.base.picture import Crosses, Fitted, Line, Panel, Picture, Points, groups


def over_training(flops: Any, tokens_per_parameter: Any, *, E: Any, a: Any, b: Any, eta: Any) -> Any:  # noqa: D103
    return E + (a * tokens_per_parameter**eta + b * tokens_per_parameter**-eta) * flops**-eta


def _study() -> Columns:
    """20 runs: five sizes from 10 M to 400 M, four ratios from 20 to 320 tokens per parameter."""
    size, ratio = np.meshgrid(np.geomspace(1e7, 4e8, 5), np.geomspace(20, 320, 4))
    return from_size_and_tokens(size.ravel(), (size * ratio).ravel())


def _picture(fit: Fitted) -> Picture:
    irreducible, eta = fit.values()["E"], fit.values()["eta"]
    flops, ratio = fit.columns["flops"], fit.columns["tokens_per_parameter"]
    held = fit.holdout if {"flops", "tokens_per_parameter"} <= set(fit.holdout.columns) else fit.holdout.iloc[:0]
    reach = np.geomspace(flops.min() / 2, 1.2 * max([flops.max() * 10.0, *held.get("flops", [])]), 60)
    # Held-out runs have lines of their ratios too, and a cross on top of the marker.
    count = len(flops)
    all_flops = np.concatenate([flops, held.get("flops", [])])
    losses = np.concatenate([fit.target, held.get("actual", [])]) - irreducible
    marks: list[Line | Points | Crosses] = []
    for index, (value, part) in enumerate(groups(np.concatenate([ratio, held.get("tokens_per_parameter", [])]), 8)):
        curve = fit.curve({"flops": reach, "tokens_per_parameter": np.full_like(reach, value)})
        marks.append(Line(x=reach, y=curve - irreducible, dashes=index))
        marks.append(Points(x=all_flops[part], y=losses[part], group=index, label=f"{value:.3g}"))
    if len(held):
        marks.append(Crosses(x=all_flops[count:], y=losses[count:], label="held out", size=13, edge=1.5))
    return Picture(
        caption="Reducible loss against compute: one line for every ratio of tokens to parameters, all with the same slope.",
        panels=(
            Panel(
                marks=tuple(marks),
                xlabel="training FLOPs",
                ylabel=f"loss - E (nats per token; E = {irreducible:.3f})",
                title=f"lines are parallel: slope -eta = {-eta:.3g}",
                legend="tokens per parameter",
                log="xy",
            ),
        ),
        width=9,
    )


OVER_TRAINING = Law(
    name="over-training",
    formula=over_training,
    text="loss = E + (a M^eta + b M^-eta) flops^-eta,  M = tokens per parameter",
    source="Gadre et al., arXiv 2403.08540, equation 4",
    needs="at least five runs and two ratios of tokens to parameters",
    parameters={
        "E": Parameter(starts=(0.0, 1.0, 2.0)),
        "a": Parameter(starts=(1e1, 1e2, 1e3, 1e4), log=True),
        "b": Parameter(starts=(1e1, 1e2, 1e3, 1e4), log=True),
        "eta": Parameter(starts=(0.05, 0.15, 0.3), high=10.0),
    },
    objective="least-squares",
    remarks=one_size_or_ratio,
    picture=_picture,
    truth={"E": 1.51, "a": 141.0, "b": 190.0, "eta": 0.121},
    design=_study,
    noise=0.01,
    beyond=from_size_and_tokens(6.9e9, 1.38e11),
)
