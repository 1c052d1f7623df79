"""Quantization-aware training: how much of a run it should take, and what it costs. B is the width of a weight in bits.

Source: "Compute-Optimal Quantization-Aware Training", arXiv 2509.22935. Its formulas are known here from notes on it, not from
its full text: the direct law and its constant agree with the ranges its authors state; of the loss law the base's letters and
the sign of xi are open, so every exponent of the interaction may be negative in a fit.
"""

import math
from typing import Any

import numpy as np

from scaling.laws.base import Columns, Law, Parameter
from scaling.laws.dual import Array

PAPER_A = 6.7297
"""The constant of the direct law as it is reported, one number for all sizes and widths (mean absolute error of f 0.091)."""


def optimal_fraction(tokens: float, parameters: float, bits: float, a: float = PAPER_A) -> float:
    """The share of a run's tokens that should be quantization-aware: exp(-a / ln S), S = tokens / (parameters bits / 8).

    Zero where S, the tokens per byte of parameters, is not above 1. `tokens` is the whole run's.

    Raises:
        ValueError: a number is not above zero.
    """
    if not (tokens > 0 and parameters > 0 and bits > 0 and a > 0):
        raise ValueError(f"tokens, parameters, bits and a must be above 0, not {tokens}, {parameters}, {bits}, {a}")
    log_ratio = math.log(tokens) - math.log(parameters * bits / 8.0)
    return math.exp(-a / log_ratio) if log_ratio > 0 else 0.0


def tokens_per_byte(tokens: Any, parameters: Any, bits: Any) -> Any:
    """S: tokens for every byte that the parameters take at this width."""
    return tokens / (parameters * bits / 8.0)


def qat_fraction(tokens: Any, parameters: Any, bits: Any, *, a: Any) -> Any:  # noqa: D103
    log_ratio = np.log(tokens_per_byte(tokens, parameters, bits))
    inverse = 1.0 / np.maximum(log_ratio, 1e-6)  # below S = 1 the exponential vanishes
    return np.exp(-a * inverse)


def qat_loss(  # noqa: D103
    parameters: Any,
    qat_tokens: Any,
    fp_tokens: Any,
    bits: Any,
    *,
    alpha: Any,
    beta: Any,
    gamma: Any,
    zeta: Any,
    eta: Any,
    theta: Any,
    kappa: Any,
    phi: Any,
    chi: Any,
    psi: Any,
    omega: Any,
    **interaction: Any,
) -> Any:
    lambda_, mu, nu, xi, rho = (interaction[name] for name in ("lambda", "mu", "nu", "xi", "rho"))
    log_size = np.log(parameters)
    log_qat = np.log(tokens_per_byte(qat_tokens, parameters, bits))
    log_fp = np.log(tokens_per_byte(fp_tokens, parameters, bits))
    halved = math.log(2.0) * bits
    base = alpha + beta * (qat_tokens + fp_tokens) ** -gamma + zeta * parameters**-eta
    irreducible = theta * np.exp(-kappa * halved)
    too_little = phi * np.exp(-chi * halved - psi * log_size - omega * log_qat)
    switch = lambda_ * np.exp(-mu * halved - nu * log_size - xi * log_fp - rho * log_qat)
    return base + irreducible + too_little + switch


def _too_few_widths(columns: Columns) -> list[str]:
    widths = np.unique(columns["bits"])
    if len(widths) > 2:
        return []
    return [
        f"runs at {len(widths)} bit width{'s' * (len(widths) > 1)}: how the penalties depend on bits (kappa, chi, mu) "
        "cannot be told; add widths or fix them with --fix"
    ]


def _no_saturation(columns: Columns) -> list[str]:
    few = np.mean(tokens_per_byte(columns["tokens"], columns["parameters"], columns["bits"]) <= 1.0)
    return [f"{100 * few:.0f} % of the optima have S <= 1, where the law says 0 whatever a is"] if few else []


def paper_grid() -> Columns:
    """757 runs over the ranges the paper states: 86 M to 2.2 B parameters, 2.3 B to 1.4 T tokens, 1, 2, 4 and 6 bits."""
    sizes, widths = np.array([86e6, 396e6, 759e6, 2.2e9]), np.array([1.0, 2.0, 4.0, 6.0])
    tokens, fractions = np.geomspace(2.3e9, 1.4e12, 6), np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8])
    size, bits, total, share = (grid.ravel()[:757] for grid in np.meshgrid(sizes, widths, tokens, fractions, indexing="ij"))
    return {"parameters": size, "qat_tokens": share * total, "fp_tokens": (1.0 - share) * total, "bits": bits}


def _optima() -> Columns:
    sizes, widths, tokens = (
        np.array([86e6, 396e6, 759e6, 2.2e9]),
        np.array([1.0, 2.0, 4.0, 6.0]),
        np.geomspace(2.3e9, 1.4e12, 4),
    )
    size, bits, total = (grid.ravel() for grid in np.meshgrid(sizes, widths, tokens))
    return {"tokens": total, "parameters": size, "bits": bits}


QAT_FRACTION = Law(
    name="qat-fraction",
    formula=qat_fraction,
    text="best qat_fraction = exp(-a / ln S),  S = tokens / (parameters bits / 8);  0 where S <= 1",
    source="arXiv 2509.22935, the direct fit (formula and constant from notes on the paper; natural logarithm by inference)",
    needs="optima at several tokens per parameter byte, S above 1",
    parameters={"a": Parameter(starts=(1.0, 3.0, 7.0, 15.0), log=True)},
    target="qat_fraction",
    objective="least-squares",
    optimum_of="qat_fraction",
    group_by=("tokens", "parameters", "bits"),
    window=5,
    remarks=_no_saturation,
    truth={"a": PAPER_A},
    design=_optima,
    beyond={"tokens": np.asarray(1e13), "parameters": np.asarray(8e9), "bits": np.asarray(4.0)},
)


def best_fractions(theta: Array, tokens: Array, parameters: Array, bits: Array) -> Array:
    """The QAT fraction of lowest loss under the loss law, (batch, runs), for parameters (batch, 16) and settings (runs,).

    On a grid of 0.001 between 0.001 and 0.999.
    """
    share = np.linspace(0.001, 0.999, 999)[:, None]
    columns = {
        "parameters": np.broadcast_to(parameters, (len(share), len(parameters))).ravel(),
        "qat_tokens": (share * tokens).ravel(),
        "fp_tokens": ((1.0 - share) * tokens).ravel(),
        "bits": np.broadcast_to(bits, (len(share), len(bits))).ravel(),
    }
    best = [np.argmin(QAT_LOSS.value(row[None], columns)[0].reshape(len(share), -1), axis=0) for row in theta]
    return np.asarray(share[np.array(best), 0])


_COEFFICIENT = (0.01, 1.0)
_RATE = (0.1, 1.0)

QAT_LOSS = Law(
    name="qat-loss",
    formula=qat_loss,
    text=(
        "loss = alpha + beta / tokens^gamma + zeta / parameters^eta  +  theta 2^(-kappa B)"
        "  +  phi 2^(-chi B) / (parameters^psi S_qat^omega)"
        "  +  lambda 2^(-mu B) / (parameters^nu S_fp^xi S_qat^rho),  S = tokens / (parameters B / 8)"
    ),
    source="arXiv 2509.22935, the loss law (from notes on it; the base's letters are ours, the interaction's signs free)",
    needs="three or more bit widths, several sizes and lengths, five or more QAT fractions of each",
    parameters={
        "alpha": Parameter(starts=(1.0, 2.0)),
        "beta": Parameter(starts=(1e2, 1e4), log=True),
        "gamma": Parameter(starts=(0.2, 0.5), high=2.0),
        "zeta": Parameter(starts=(1e1, 1e3), log=True),
        "eta": Parameter(starts=(0.2, 0.5), high=2.0),
        "theta": Parameter(starts=_COEFFICIENT, log=True),
        "kappa": Parameter(starts=_RATE, high=5.0),
        "phi": Parameter(starts=(0.1, 1e2), log=True),
        "chi": Parameter(starts=_RATE, high=5.0),
        "psi": Parameter(starts=(0.0, 0.4), low=-2.0, high=2.0),
        "omega": Parameter(starts=_RATE, high=5.0),
        "lambda": Parameter(starts=(0.1, 1e2), log=True),
        "mu": Parameter(starts=_RATE, low=-2.0, high=5.0),
        "nu": Parameter(starts=(0.0, 0.4), low=-2.0, high=2.0),
        "xi": Parameter(starts=(-0.5, 1.0), low=-5.0, high=5.0),
        "rho": Parameter(starts=(0.0, 0.5), low=-5.0, high=5.0),
    },
    remarks=_too_few_widths,
    num_starts=512,
    truth={
        "alpha": 1.75,
        "beta": 1800.0,
        "gamma": 0.36,
        "zeta": 400.0,
        "eta": 0.34,
        "theta": 0.35,
        "kappa": 1.1,
        "phi": 2.0,
        "chi": 0.45,
        "psi": 0.12,
        "omega": 0.35,
        "lambda": 8.0,
        "mu": 0.35,
        "nu": 0.1,
        "xi": 0.55,
        "rho": 0.05,
    },
    design=paper_grid,
    beyond={
        key: np.asarray(value)
        for key, value in (("parameters", 8e9), ("qat_tokens", 1.5e12), ("fp_tokens", 3.5e12), ("bits", 4.0))
    },
)
