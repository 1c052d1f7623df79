"""The best peak learning rate as a function of size and tokens."""

from typing import Any

import numpy as np

from scaling.laws.base.columns import Columns, one_size
from scaling.laws.base.law import RATE, Law, Parameter
from scaling.laws.base.picture import Fitted, Line, Panel, Picture, Points, groups, sweeps


def step_law(parameters: Any, tokens: Any, *, a: Any, b: Any, c: Any) -> Any:  # noqa: D103
    return a * parameters**b * tokens**c


def _study() -> Columns:
    size, ratio = np.meshgrid(np.geomspace(6e7, 1e9, 5), np.array([10.0, 30.0, 100.0, 300.0]))
    return {"parameters": size.ravel(), "tokens": (size * ratio).ravel()}


def _picture(fit: Fitted) -> Picture:
    columns, values = fit.columns, fit.values()
    reach = np.geomspace(columns["tokens"].min() / 2, columns["tokens"].max() * 10, 60)
    marks: list[Line | Points] = []
    for index, (size, part) in enumerate(groups(columns["parameters"])):
        curve = fit.curve({"parameters": np.full_like(reach, size), "tokens": reach})
        marks.append(Line(x=reach, y=curve, dashes=index))
        marks.append(Points(x=columns["tokens"][part], y=fit.target[part], group=index, label=f"{size:.3g}"))
    return Picture(
        caption="The best learning rate for each size and length: one line for every size.",
        panels=(
            *sweeps(fit, "peak_learning_rate", "sweeps and their parabolas"),
            Panel(
                marks=tuple(marks),
                xlabel="tokens",
                ylabel="best peak learning rate",
                title=f"learning rate: size to the {values['b']:.3f}, tokens to the {values['c']:.3f}",
                legend="parameters",
                log="xy",
            ),
        ),
        width=12 if len(fit.sweeps) else 8,
    )


STEP_LAW = Law(
    name="step-law",
    formula=step_law,
    text="best peak learning rate = a parameters^b tokens^c",
    source="Li et al., arXiv 2503.04715, equation 1",
    needs="optima at several sizes and several lengths of training",
    parameters={
        "a": Parameter(starts=(1e-2, 1.0, 100.0), log=True),
        "b": Parameter(starts=(-0.8, -0.3), low=-4.0, high=2.0),
        "c": Parameter(starts=(-0.3, 0.3), low=-4.0, high=2.0),
    },
    target="peak_learning_rate",
    objective="least-squares",
    log_residuals=True,
    optimum_of="peak_learning_rate",
    group_by=("tokens", "batch_tokens", "parameters"),
    window=5,
    remarks=one_size,
    answers=RATE,
    picture=_picture,
    truth={"a": 1.79, "b": -0.713, "c": 0.307},
    design=_study,
    beyond={"parameters": np.asarray(1e10), "tokens": np.asarray(1e12)},
)
