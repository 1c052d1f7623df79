"""What quantization-aware training costs: loss by size, quantized and full-precision tokens, and bits of a weight (B)."""

import math
from typing import Any

import numpy as np

from scaling.laws.base.budget import MOST_RATIO, BestRuns, Budget
from scaling.laws.base.columns import Columns
from scaling.laws.base.dual import Array
from scaling.laws.base.law import QUANTIZATION, Law, Parameter
from scaling.laws.base.picture import Fitted, Line, Panel, Picture, Points, groups
from scaling.laws.qat import PAPER_A, tokens_per_byte
from scaling.laws.qat_fraction import qat_fraction

_SHARES = np.linspace(0.01, 0.99, 99)


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
    log_qat, log_fp = (_log_per_byte(part, parameters, bits) for part in (qat_tokens, fp_tokens))
    halved = math.log(2.0) * bits
    base = alpha + beta * (qat_tokens + fp_tokens) ** -gamma + zeta * parameters**-eta
    irreducible = theta * np.exp(-kappa * halved)
    too_little = phi * np.exp(-chi * halved - psi * log_size - omega * log_qat)
    switch = lambda_ * np.exp(-mu * halved - nu * log_size - xi * log_fp - rho * log_qat)
    quantized = qat_tokens > 0  # a run in full precision has the base alone
    return base + irreducible * quantized + too_little * quantized + switch * quantized


def _log_per_byte(tokens: Any, parameters: Any, bits: Any) -> Any:
    """ln S; 0 where there are no tokens: quantization from the first step is as if it began after one token per byte."""
    present = tokens > 0
    return np.log(tokens_per_byte(np.where(present, tokens, 1.0), parameters, bits)) * present


def _too_few_widths(columns: Columns) -> list[str]:
    widths = np.unique(columns["bits"])
    if len(widths) > 2:
        return []
    return [
        f"runs at {len(widths)} bit width{'s' * (len(widths) > 1)}: how the penalties depend on bits (kappa, chi, mu) "
        "cannot be determined; add widths or fix them with --fix"
    ]


def paper_grid() -> Columns:
    """757 runs over the ranges the paper states: 86 M to 2.2 B parameters, 2.3 B to 1.4 T tokens, 1, 2, 4 and 6 bits."""
    sizes, widths = np.array([86e6, 396e6, 759e6, 2.2e9]), np.array([1.0, 2.0, 4.0, 6.0])
    tokens, fractions = np.geomspace(2.3e9, 1.4e12, 6), np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8])
    size, bits, total, share = (grid.ravel()[:757] for grid in np.meshgrid(sizes, widths, tokens, fractions, indexing="ij"))
    return {"parameters": size, "qat_tokens": share * total, "fp_tokens": (1.0 - share) * total, "bits": bits}


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


def _best_of_study(theta: Array, columns: Columns) -> Array:
    """`best_fractions` for every length, size and width of a study."""
    columns = _quantized(columns)
    total = columns["qat_tokens"] + columns["fp_tokens"]
    settings = dict.fromkeys(zip(np.round(total, -3), columns["parameters"], columns["bits"], strict=True))
    return best_fractions(theta, *np.array(list(settings)).T)


def _best_runs(
    theta: Array, budget: Budget, *, cap: float | None = None, bits: float | None = None, quick: bool = False, **_: Any
) -> BestRuns:
    """On a grid of tokens per parameter and QAT fractions; every fourth of both, and some 250 of the vectors, where `quick`."""
    assert bits is not None
    theta, step = (theta[:: max(1, len(theta) // 250)], 4) if quick else (theta, 1)
    least = max(0.1, budget.least_ratio(cap))
    ratio = np.geomspace(least, max(MOST_RATIO, 10 * least), 400)
    ratios, shares = (grid.ravel() for grid in np.meshgrid(ratio[::step], _SHARES[::step]))
    sizes = budget.size(ratios)
    tokens = ratios * sizes
    columns = {
        "parameters": sizes,
        "qat_tokens": shares * tokens,
        "fp_tokens": (1.0 - shares) * tokens,
        "bits": np.full_like(sizes, bits),
    }
    losses = [QAT_LOSS.value(row[None], columns)[0] for row in theta]
    best = np.array([np.argmin(row) for row in losses])
    return BestRuns(
        parameters=sizes[best], tokens=tokens[best], loss=np.array([row.min() for row in losses]), qat_fraction=shares[best]
    )


def _picture(fit: Fitted) -> Picture:
    return Picture(
        caption=(
            "Loss against QAT fraction for the smallest model at the widest weights, and the fraction of lowest loss against S."
        ),
        panels=(_loss_against_fraction(fit), _best_fraction_against_saturation(fit)),
        width=12,
    )


def _quantized(columns: Columns) -> Columns:
    """The runs that are not all in full precision."""
    return {name: column[columns["qat_tokens"] > 0] for name, column in columns.items()}


def _loss_against_fraction(fit: Fitted) -> Panel:
    columns, target = _quantized(fit.columns), fit.target[fit.columns["qat_tokens"] > 0]
    total = columns["qat_tokens"] + columns["fp_tokens"]
    size = float(columns["parameters"].min())
    smallest = np.flatnonzero(columns["parameters"] == size)
    share = np.linspace(0.01, 0.99, 99)
    marks: list[Line | Points] = []
    for index, (tokens, part) in enumerate(groups(total[smallest])):
        rows = smallest[part]
        widest = columns["bits"][rows].max()
        rows = rows[columns["bits"][rows] == widest]
        along = {
            "parameters": np.full(99, size),
            "qat_tokens": share * tokens,
            "fp_tokens": (1 - share) * tokens,
            "bits": np.full(99, widest),
        }
        marks.append(Line(x=share, y=fit.curve(along), dashes=index))
        marks.append(Points(x=columns["qat_tokens"][rows] / total[rows], y=target[rows], group=index, label=f"{tokens:.2g}"))
    return Panel(
        marks=tuple(marks),
        xlabel="QAT fraction",
        ylabel="loss (nats per token)",
        title=f"{size:.3g} parameters, {columns['bits'].max():g} bits",
        legend="tokens",
    )


def _best_fraction_against_saturation(fit: Fitted) -> Panel:
    columns = _quantized(fit.columns)
    total = columns["qat_tokens"] + columns["fp_tokens"]
    marks: list[Line | Points] = []
    for index, bits in enumerate(np.unique(columns["bits"])):
        sizes, lengths = (
            grid.ravel() for grid in np.meshgrid(np.unique(columns["parameters"]), np.geomspace(total.min(), total.max(), 8))
        )
        widths = np.full_like(sizes, bits)
        best = best_fractions(fit.theta[None], lengths, sizes, widths)[0]
        marks.append(Points(x=tokens_per_byte(lengths, sizes, widths), y=best, group=index, label=f"{bits:g} bits"))
    reach = np.geomspace(1.5, 1e5, 100)
    marks.append(Line(x=reach, y=qat_fraction(reach, 1.0, 8.0, a=PAPER_A), label=f"exp(-{PAPER_A} / ln S)"))
    return Panel(
        marks=tuple(marks),
        xlabel="S: tokens per byte of parameters",
        ylabel="best QAT fraction",
        title="where the fitted law has its minimum",
        log="x",
    )


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
    answers=QUANTIZATION,
    best=_best_runs,
    best_fraction=_best_of_study,
    picture=_picture,
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
