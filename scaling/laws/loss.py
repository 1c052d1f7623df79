"""Loss as a function of size and tokens, and the size that a budget asks for. Loss is nats per token, flops are 6 N D."""

from typing import Any

import numpy as np

from scaling.laws.base import Columns, Law, Parameter


def chinchilla(parameters: Any, tokens: Any, *, E: Any, A: Any, B: Any, alpha: Any, beta: Any) -> Any:  # noqa: D103
    return E + A * parameters**-alpha + B * tokens**-beta


def over_training(flops: Any, tokens_per_parameter: Any, *, E: Any, a: Any, b: Any, eta: Any) -> Any:  # noqa: D103
    return E + (a * tokens_per_parameter**eta + b * tokens_per_parameter**-eta) * flops**-eta


def isoflop(flops: Any, *, size_exponent: Any, size_coefficient: Any) -> Any:  # noqa: D103
    return size_coefficient * flops**size_exponent


def one_ratio(columns: Columns) -> list[str]:
    """Whether every run has the same tokens per parameter."""
    ratio = columns["tokens_per_parameter"] if "tokens_per_parameter" in columns else columns["tokens"] / columns["parameters"]
    if ratio.max() > 1.05 * ratio.min():
        return []
    return [
        f"all runs have about {ratio.mean():.3g} tokens per parameter: size and data cannot be told apart. "
        "Only forecasts at that ratio mean anything; add runs at another one"
    ]


def one_size(columns: Columns) -> list[str]:
    """Whether every run has the same size."""
    size = columns.get("parameters")
    if size is None or size.max() > 1.05 * size.min():
        return []
    return [f"all runs have one size ({size.mean():.4g} parameters): how loss depends on size is a guess"]


def _study() -> Columns:
    """48 runs: eight sizes from 10 M to 3 B, six ratios from 2.5 to 640 tokens per parameter."""
    size, ratio = np.meshgrid(np.geomspace(1e7, 3e9, 8), np.geomspace(2.5, 640, 6))
    return from_size_and_tokens(size.ravel(), (size * ratio).ravel())


def _small_study() -> Columns:
    """20 runs: five sizes from 10 M to 400 M, four ratios from 20 to 320 tokens per parameter."""
    size, ratio = np.meshgrid(np.geomspace(1e7, 4e8, 5), np.geomspace(20, 320, 4))
    return from_size_and_tokens(size.ravel(), (size * ratio).ravel())


def _budgets() -> Columns:
    return {"flops": np.geomspace(6e18, 3e21, 9)}


def from_size_and_tokens(parameters: Any, tokens: Any) -> dict[str, Any]:
    """All four columns that the loss laws use."""
    return {
        "parameters": parameters,
        "tokens": tokens,
        "flops": 6.0 * parameters * tokens,
        "tokens_per_parameter": tokens / parameters,
    }


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
        "alpha": Parameter(starts=(0.2, 0.5, 0.8), high=3.0),
        "beta": Parameter(starts=(0.2, 0.5, 0.8), high=3.0),
    },
    remarks=lambda columns: one_size(columns) + one_ratio(columns),
    truth={"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
    design=_study,
    beyond=from_size_and_tokens(2e10, 4e11),
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
        "eta": Parameter(starts=(0.05, 0.15, 0.3), high=1.5),
    },
    objective="least-squares",
    remarks=lambda columns: one_size(columns) + one_ratio(columns),
    truth={"E": 1.51, "a": 141.0, "b": 190.0, "eta": 0.121},
    design=_small_study,
    noise=0.01,
    beyond=from_size_and_tokens(6.9e9, 1.38e11),
)

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
        "tokens_exponent": lambda values: 1.0 - values["size_exponent"],
        "tokens_coefficient": lambda values: 1.0 / (6.0 * values["size_coefficient"]),
    },
    target="parameters",
    objective="least-squares",
    log_residuals=True,
    optimum_of="parameters",
    group_by=("flops",),
    group_tolerance=0.05,
    truth={"size_exponent": 0.49, "size_coefficient": 0.14},
    design=_budgets,
    beyond={"flops": 1e24},
)
