"""The best peak learning rate as a function of tokens and batch."""

from typing import Any

import numpy as np

from scaling.laws.base.columns import Columns
from scaling.laws.base.law import RATE, Law, Parameter
from scaling.laws.base.picture import Fitted, Panel, Picture, Points, band, groups, sweeps

SEQUENCE_UNIT = 4096
"""Tokens of one sequence in the paper: batches are counted in units of it."""


def learning_rate(tokens: Any, batch_tokens: Any, *, a: Any, b: Any) -> Any:  # noqa: D103
    return (batch_tokens / SEQUENCE_UNIT) * a * tokens**b


def _one_length(columns: Columns) -> list[str]:
    tokens = columns["tokens"]
    if tokens.max() > 1.5 * tokens.min():
        return []
    return [
        f"all optima are at about {tokens.mean():.3g} tokens: the exponent b cannot be determined; add shorter or longer runs"
    ]


def _study() -> Columns:
    tokens, batch = np.meshgrid(np.geomspace(2e9, 2.56e11, 8), np.array([32, 128, 512]) * float(SEQUENCE_UNIT))
    return {"tokens": tokens.ravel(), "batch_tokens": batch.ravel()}


def _picture(fit: Fitted) -> Picture:
    columns, values = fit.columns, fit.values()
    reach = np.geomspace(columns["tokens"].min() / 2, columns["tokens"].max() * 10, 60)
    law = {"tokens": reach, "batch_tokens": np.asarray(float(SEQUENCE_UNIT))}
    points = [
        Points(
            x=columns["tokens"][part],
            y=fit.target[part] / (columns["batch_tokens"][part] / SEQUENCE_UNIT),
            group=index,
            label=f"batch {batch:.3g} tokens",
        )
        for index, (batch, part) in enumerate(groups(columns["batch_tokens"]))
    ]
    return Picture(
        caption="The best learning rate for each length and batch, over the batch.",
        panels=(
            *sweeps(fit, "peak_learning_rate", "sweeps and their parabolas"),
            Panel(
                marks=(band(fit, reach, law, f"a = {values['a']:.3g}, b = {values['b']:.3f}"), *points),
                xlabel="tokens",
                ylabel=f"best peak learning rate / (batch tokens / {SEQUENCE_UNIT})",
                title="learning rate",
                log="xy",
            ),
        ),
        width=12 if len(fit.sweeps) else 8,
    )


LEARNING_RATE = Law(
    name="learning-rate",
    formula=learning_rate,
    text="best peak learning rate = (batch_tokens / 4096) a tokens^b",
    source="Shen et al., arXiv 2408.13359, section 3 (optimal rate of WSD; under muP one a, b for all sizes)",
    needs="optima at three or more lengths of training",
    parameters={
        "a": Parameter(starts=(0.1, 1.0, 10.0, 100.0), log=True),
        "b": Parameter(starts=(-0.8, -0.5, -0.2), low=-3.0, high=1.0),
    },
    target="peak_learning_rate",
    objective="least-squares",
    log_residuals=True,
    optimum_of="peak_learning_rate",
    group_by=("tokens", "batch_tokens", "parameters"),
    window=5,
    remarks=_one_length,
    answers=RATE,
    picture=_picture,
    truth={"a": 4.6, "b": -0.51},
    design=_study,
    beyond={"tokens": np.asarray(1e13), "batch_tokens": np.asarray(1024 * 4096.0)},
)
