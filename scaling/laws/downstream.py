"""Error on tasks as a function of loss."""

from typing import Any

import numpy as np

from scaling.laws.base.law import ERROR, Law, Parameter
from scaling.laws.base.picture import Crosses, Fitted, Panel, Picture, Points, band


def downstream(loss: Any, *, epsilon: Any, k: Any, gamma: Any) -> Any:  # noqa: D103
    return epsilon - k * np.exp(-gamma * loss)


def _picture(fit: Fitted) -> Picture:
    loss, held = fit.columns["loss"], fit.holdout
    lowest = min([loss.min(), *held.get("loss", [])])
    reach = np.linspace(lowest - 0.1, loss.max() + 0.1, 100)
    fitted = Points(x=loss, y=fit.target, label="fitted")
    crosses = (
        (Crosses(x=held["loss"], y=held["actual"], label="held out, at its measured loss"),) if "loss" in held.columns else ()
    )
    return Picture(
        caption="Error against loss; the band is the law's 95 % interval.",
        panels=(
            Panel(
                marks=(band(fit, reach, {"loss": reach}), fitted, *crosses),
                xlabel="loss (nats per token)",
                ylabel="error",
                title="error on tasks against loss",
            ),
        ),
    )


DOWNSTREAM = Law(
    name="downstream",
    formula=downstream,
    text="error = epsilon - k exp(-gamma loss)",
    source="Gadre et al., arXiv 2403.08540, equation 5",
    needs="at least four runs, some of whose errors are clear of chance",
    parameters={
        "epsilon": Parameter(starts=(0.5, 0.7, 0.9), high=1.0),
        "k": Parameter(starts=(0.1, 1.0, 10.0, 100.0), log=True),
        "gamma": Parameter(starts=(0.25, 0.5, 1.0, 2.0), log=True),
    },
    target="error",
    objective="least-squares",
    answers=ERROR,
    picture=_picture,
    truth={"epsilon": 0.85, "k": 2.08, "gamma": 0.756},
    design=lambda: {"loss": np.linspace(2.4, 5.2, 16)},
    noise=0.005,
    beyond={"loss": np.asarray(2.1)},
)
