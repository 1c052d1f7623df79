"""Loss of models that are quantized from their first step: bits of weights and activations take away parameters."""

from typing import Any

import numpy as np

from scaling.laws.base.budget import BestRuns, Budget, best_ratios
from scaling.laws.base.columns import FULL_BITS, Columns
from scaling.laws.base.dual import Array
from scaling.laws.base.law import QUANTIZATION, Law, Parameter
from scaling.laws.base.picture import Fitted, Line, Panel, Picture, Points, groups

_ALL = 1.0  # of the tokens are quantization-aware


def effective_size(  # noqa: D103
    parameters: Any, tokens: Any, bits: Any, activation_bits: Any, *,
    E: Any, A: Any, B: Any, alpha: Any, beta: Any, weights: Any, activations: Any,
) -> Any:  # fmt: skip
    kept = (1.0 - np.exp(-bits / weights)) * (1.0 - np.exp(-activation_bits / activations))
    return E + A * (parameters * kept) ** -alpha + B * tokens**-beta


def _best_runs(theta: Array, budget: Budget, *, cap: float | None = None, bits: float | None = None, **_: Any) -> BestRuns:
    """With activations in full precision, quantized from the first step."""
    widths = {"bits": np.asarray(bits), "activation_bits": np.asarray(FULL_BITS)}

    def value(vectors: Array, columns: Columns) -> Array:
        return EFFECTIVE_SIZE.value(vectors, {**columns, **widths})

    ratio, loss = best_ratios(value, theta, budget, cap)
    size = budget.size(ratio)
    return BestRuns(parameters=size, tokens=ratio * size, loss=loss, qat_fraction=np.full(len(theta), _ALL))


def _few_widths(columns: Columns) -> list[str]:
    return [
        f"all runs have {columns[name][0]:g} {what}: what they cost cannot be determined; fix it with --fix {parameter}=VALUE"
        for name, what, parameter in (
            ("bits", "bits of a weight", "weights"),
            ("activation_bits", "bits of an activation", "activations"),
        )
        if len(np.unique(columns[name])) == 1
    ]


def _study() -> Columns:
    size, ratio, width = (grid.ravel() for grid in np.meshgrid([3e7, 6e7, 1.2e8, 2.4e8], [25.0, 100.0], np.arange(9)))
    weight = np.array([1.0, 2.0, 3.0, 4.0, 8.0, 16.0, 4.0, 2.0, 16.0])[width.astype(int)]
    activation = np.array([1.0, 2.0, 3.0, 4.0, 8.0, 16.0, 16.0, 16.0, 4.0])[width.astype(int)]
    return {"parameters": size, "tokens": size * ratio, "bits": weight, "activation_bits": activation}


def _picture(fit: Fitted) -> Picture:
    columns = fit.columns
    reach = np.geomspace(1.0, 16.0, 80)
    middle = {name: float(np.exp(np.log(columns[name]).mean())) for name in ("parameters", "tokens")}
    marks: list[Line | Points] = []
    # Runs differ in size and tokens: what is shown is their distance from the law, at the curves' size and tokens.
    for index, (width, part) in enumerate(groups(columns["activation_bits"])):
        at = {name: np.full_like(reach, value) for name, value in middle.items()}
        marks.append(
            Line(x=reach, y=fit.curve(at | {"bits": reach, "activation_bits": np.full_like(reach, width)}), dashes=index)
        )
        own = {name: column[part] for name, column in columns.items()}
        moved = fit.curve(own | {name: np.full(len(part), value) for name, value in middle.items()})
        marks.append(Points(x=own["bits"], y=moved + fit.target[part] - fit.fitted[part], group=index, label=f"{width:.3g}"))
    return Picture(
        caption="Loss against bits of a weight; runs moved along the law to the size and tokens of the curves.",
        panels=(
            Panel(
                marks=tuple(marks),
                xlabel="bits of a weight",
                ylabel="loss (nats per token)",
                title=f"{middle['parameters']:.3g} parameters, {middle['tokens']:.3g} tokens",
                legend="bits of an activation",
                log="x",
            ),
        ),
    )


EFFECTIVE_SIZE = Law(
    name="effective-size",
    formula=effective_size,
    text=(
        "loss = E + A / effective^alpha + B / tokens^beta,  effective = parameters (1 - e^(-bits / weights))"
        " (1 - e^(-activation_bits / activations))"
    ),
    source="Kumar et al., arXiv 2411.04330, equation 3 (without a width of the KV cache)",
    needs="several sizes, lengths and widths of weights and of activations",
    parameters={
        "E": Parameter(starts=(0.5, 1.5)),
        "A": Parameter(starts=(1e1, 1e2, 1e3), log=True),
        "B": Parameter(starts=(1e2, 1e4), log=True),
        "alpha": Parameter(starts=(0.1, 0.3, 0.6), high=10.0),
        "beta": Parameter(starts=(0.2, 0.5), high=10.0),
        "weights": Parameter(starts=(1.0, 3.0), log=True),
        "activations": Parameter(starts=(1.0, 3.0), log=True),
    },
    remarks=_few_widths,
    answers=QUANTIZATION,
    best=_best_runs,
    picture=_picture,
    truth={"E": 1.9, "A": 300.0, "B": 2500.0, "alpha": 0.33, "beta": 0.38, "weights": 2.6, "activations": 2.2},
    design=_study,
    beyond={
        name: np.asarray(value)
        for name, value in (("parameters", 2e9), ("tokens", 2e11), ("bits", 4.0), ("activation_bits", 8.0))
    },
)
