"""Error on tasks as a function of loss."""

from typing import Any

import numpy as np

from scaling.laws.base import Law, Parameter


def downstream(loss: Any, *, epsilon: Any, k: Any, gamma: Any) -> Any:  # noqa: D103
    return epsilon - k * np.exp(-gamma * loss)


DOWNSTREAM = Law(
    name="downstream",
    formula=downstream,
    text="error = epsilon - k exp(-gamma loss)",
    source="Gadre et al., arXiv 2403.08540, equation 5",
    needs="at least four runs whose errors leave chance level behind",
    parameters={
        "epsilon": Parameter(starts=(0.5, 0.7, 0.9), high=1.5),
        "k": Parameter(starts=(0.1, 1.0, 10.0, 100.0), log=True),
        "gamma": Parameter(starts=(0.25, 0.5, 1.0, 2.0), log=True),
    },
    target="error",
    objective="least-squares",
    truth={"epsilon": 0.85, "k": 2.08, "gamma": 0.756},
    design=lambda: {"loss": np.linspace(2.4, 5.2, 16)},
    noise=0.005,
    beyond={"loss": np.asarray(2.1)},
)
