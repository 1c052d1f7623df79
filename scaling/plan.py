"""From fits to decisions: what to train under a budget, what every alternative costs, which cheap runs would tell more.

Compute is 6 N D for training and 2 N for every token of inference (Kaplan et al., arXiv 2001.08361, section 2.1; with inference
as in Sardana et al., arXiv 2401.00448). A model of N parameters at B bits takes N B / 8 bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from common.errors import UserError
from scaling.arguments import BITS
from scaling.fit import Fit
from scaling.ladder import WORTH, ladder
from scaling.laws.dual import Array
from scaling.laws.loss import from_size_and_tokens, one_ratio
from scaling.overrides import NO_FRACTION
from scaling.trust import extrapolation, far_columns, unknown_parameters

RATIOS = (2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0)
"""Tokens per parameter of the alternatives."""
GIB = 2.0**30
FULL_BITS = 16.0
"""Bits of a weight that is not quantized."""
_SIZE_COLUMNS = {"parameters", "tokens", "flops", "tokens_per_parameter"}
_SHARES = np.linspace(0.01, 0.99, 99)
_LEAST_RATIO, _MOST_RATIO = 1e-2, 1e6  # tokens per parameter between which an optimum is looked for
# What a fit is for; a plan takes one of each.
_SIZE, _QUANTIZATION, _RATE, _ERROR = "the size", "quantization", "the learning rate", "the error on tasks"


@dataclass(frozen=True)
class Budget:
    """FLOPs of training, and of serving where tokens are to be served."""

    flops: float
    served: float = 0.0
    """tokens of inference in the model's life"""

    def size(self, ratio: Any) -> Any:
        """The size that spends the budget at so many tokens per parameter: the root of 6 M N^2 + 2 served N = flops."""
        return self.flops / (self.served + np.sqrt(self.served**2 + 6.0 * ratio * self.flops))

    def least_ratio(self, cap: float | None) -> float:
        """Tokens per parameter at which the size is `cap`: the least for models no larger."""
        if cap is None:
            return 0.0
        return max(0.0, (self.flops - 2.0 * cap * self.served) / (6.0 * cap**2))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Something that could be trained."""

    name: str
    parameters: float
    tokens: float
    loss: float | None = None
    low: float | None = None
    high: float | None = None
    cost: float | None = None
    """loss above the best choice's of its table"""
    wasted: float | None = None
    """share of the compute that the compute-optimal run would save at this loss"""
    bits: float | None = None
    """None: not quantized"""
    qat_fraction: float | None = None
    memory_gib: float | None = None
    """of the weights"""
    error: float | None = None
    learning_rate: float | None = None
    learning_rate_low: float | None = None
    learning_rate_high: float | None = None
    far: tuple[str, ...] = ()
    """columns in which it lies far outside the fitted runs"""

    @property
    def flops(self) -> float:
        """Of training."""
        return 6.0 * self.parameters * self.tokens


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer to one budget."""

    budget: Budget
    optimum: Choice
    parameters_range: tuple[float, float] | None
    """95 % interval of the best size"""
    alternatives: tuple[Choice, ...] = ()
    widths: tuple[Choice, ...] = ()
    ladder: tuple[Choice, ...] = ()
    ladder_before: float | None = None
    """half the width of the law's 95 % interval at the optimum; `ladder_after`: expected after the ladder's runs"""
    ladder_after: float | None = None
    no_ladder: str = ""
    """why there is none"""
    warnings: tuple[str, ...] = ()
    context: Mapping[str, Any] = field(default_factory=dict)
    memory_gib: float | None = None
    batch_tokens: float | None = None
    """as it was asked for"""


def plan(
    fits: Sequence[Fit],
    flops: float,
    *,
    memory_gib: float | None = None,
    bits: Sequence[float] = (),
    inference_tokens: float | None = None,
    ladder_share: float = 0.05,
    batch_tokens: float | None = None,
) -> Plan:
    """Plan a run of `flops` FLOPs.

    Args:
        fits: a loss law or an isoflop law or qat-loss; beside it any of qat-loss or qat-fraction, learning-rate, downstream.
        flops: the budget of training (with `inference_tokens`, of training and inference together).
        memory_gib: the weights must fit in it.
        bits: widths of weights to compare; a single one is what the run is to have.
        inference_tokens: tokens that the model will serve in its life.
        ladder_share: compute of the proposed ladder as a share of `flops`.
        batch_tokens: tokens of an optimizer step.

    Raises:
        UserError: no fit to plan from, two for the same, one whose runs cannot tell size from tokens, a wish that none serves.
    """
    roles = _roles(fits)
    sizing, quantized = roles.get(_SIZE), roles.get(_QUANTIZATION)
    quantized = quantized if quantized is not None and quantized.law.target == "loss" else None
    budget = Budget(flops, inference_tokens or 0.0)
    if sizing is not None and sizing.law.name == "isoflop" and (memory_gib or inference_tokens):
        raise UserError("isoflop knows the best size for compute alone: --memory-gib and --inference-tokens need a loss law")
    batch = batch_tokens or _batch(fits)
    if _RATE in roles and batch is None:
        raise UserError("the best learning rate depends on the batch, which the fitted runs do not say: type --batch-tokens B")

    widths = _widths(roles, quantized, budget, memory_gib, bits)
    by_width = sizing is None or (bool(bits) and (quantized is not None or len(bits) == 1))
    if by_width:
        optimum = replace(min(widths, key=lambda choice: choice.loss or np.inf), name="optimum")
        source = quantized or sizing
    else:
        optimum, source = _best(sizing, budget, None, memory_gib), sizing
    assert source is not None
    spread = _size_range(source, budget, optimum, _cap(memory_gib, optimum.bits))
    loss_law = source is sizing and source.law.target == "loss"
    alternatives = _alternatives(source, budget, optimum, _cap(memory_gib, optimum.bits)) if loss_law else ()
    steps, before, after, none = _ladder(source, optimum, ladder_share * flops, loss_law)

    def complete(choice: Choice) -> Choice:
        return _with_more(choice, roles, source, batch)

    optimum = complete(optimum)
    return Plan(
        budget=budget,
        optimum=optimum,
        parameters_range=spread,
        alternatives=tuple(map(complete, alternatives)),
        widths=tuple(map(complete, widths)),
        ladder=tuple(map(complete, steps)),
        ladder_before=before,
        ladder_after=after,
        no_ladder=none,
        warnings=tuple(_warnings(roles, source, optimum, widths, memory_gib, batch)),
        context=next((fit.context for fit in fits if fit.context), {}),
        memory_gib=memory_gib,
        batch_tokens=batch_tokens,
    )


def _roles(fits: Sequence[Fit]) -> dict[str, Fit]:
    """Which fit says what."""
    roles: dict[str, Fit] = {}
    named = {"isoflop": _SIZE, "qat-loss": _QUANTIZATION, "qat-fraction": _QUANTIZATION, "learning-rate": _RATE,
             "downstream": _ERROR}  # fmt: skip
    for fit in fits:
        sizing = fit.law.target == "loss" and set(fit.law.columns) <= _SIZE_COLUMNS
        role = _SIZE if sizing else named.get(fit.law.name)
        if role is None:
            raise UserError(f"plan has no use for a fit of {fit.law.name}: leave it out")
        if role in roles:
            raise UserError(f"{roles[role].law.name} and {fit.law.name} both say {role}: give one of them")
        roles[role] = fit
    if _SIZE not in roles and (_QUANTIZATION not in roles or roles[_QUANTIZATION].law.target != "loss"):
        names = ", ".join(fit.law.name for fit in fits)
        raise UserError(f"no plan follows from {names} alone: add a fit of chinchilla, over-training, isoflop or qat-loss")
    for role in (_SIZE, _QUANTIZATION):
        if role in roles:
            _require_identified(roles[role])
    return roles


def _require_identified(fit: Fit) -> None:
    unknown = unknown_parameters(fit)
    ratio = fit.runs["tokens_per_parameter"].to_numpy() if "tokens_per_parameter" in fit.runs.columns else None
    single = one_ratio({"tokens_per_parameter": ratio}) if ratio is not None and fit.law.target == "loss" else []
    if unknown or single or len(fit.runs) < len(fit.law.names) - len(fit.fixed):
        why = single[0] if single else f"its runs do not determine {', '.join(unknown or fit.law.names)}"
        raise UserError(f"no plan from this {fit.law.name} fit: {why}\nIt needs {fit.law.needs or 'runs that differ more'}")


def _batch(fits: Sequence[Fit]) -> float | None:
    batches = [fit.context["config"].get("train.batch_tokens") for fit in fits if "config" in fit.context]
    return float(batches[0]) if batches and batches[0] else None


def _cap(memory_gib: float | None, bits: float | None) -> float | None:
    """The most parameters that fit."""
    return None if memory_gib is None else memory_gib * GIB * 8.0 / (bits or FULL_BITS)


def best_ratios(fit: Fit, theta: Array, budget: Budget, cap: float | None = None) -> tuple[Array, Array]:
    """The tokens per parameter of lowest loss within the budget, and that loss, per parameter vector; models up to `cap`."""
    least = min(max(_LEAST_RATIO, budget.least_ratio(cap)), _MOST_RATIO)
    axis = np.linspace(np.log(least), np.log(_MOST_RATIO), max(3, round((np.log(_MOST_RATIO) - np.log(least)) / 2e-2)))
    if budget.least_ratio(cap) >= _MOST_RATIO:  # so small a model sees all the tokens there are
        axis = np.log(budget.least_ratio(cap)) + np.arange(3) * 1e-9
    ratio = np.exp(axis)
    size = budget.size(ratio)
    value = fit.law.value(theta, from_size_and_tokens(size, ratio * size))
    at = np.argmin(value, axis=1)
    inner, rows = np.clip(at, 1, len(axis) - 2), np.arange(len(theta))
    left, middle, right = (value[rows, inner + shift] for shift in (-1, 0, 1))
    bend = left - 2.0 * middle + right
    shift = np.where((at == inner) & (bend > 0), 0.5 * (left - right) / np.where(bend > 0, bend, 1.0), 0.0)
    return ratio[at] * np.exp((axis[1] - axis[0]) * np.clip(shift, -1, 1)), value.min(axis=1)


def _best(fit: Fit | None, budget: Budget, bits: float | None, memory_gib: float | None, **more: Any) -> Choice:
    """The best size for a budget, by a loss law or by isoflop."""
    assert fit is not None
    name = "optimum" if bits is None else f"{bits:g}-bit weights"
    if fit.law.name == "isoflop":
        size = float(fit.predict({"flops": np.array([budget.flops])}).value[0])
        return Choice(name=name, parameters=size, tokens=budget.flops / (6.0 * size), bits=bits, **more)
    ratio = float(best_ratios(fit, fit.theta[None], budget, _cap(memory_gib, bits))[0][0])
    return _choice(fit, name, float(budget.size(ratio)), ratio, bits=bits, **more)


def _size_range(fit: Fit, budget: Budget, optimum: Choice, cap: float | None) -> tuple[float, float] | None:
    """95 % interval of the best size; None where there are no draws, or nothing but the cap decides."""
    theta = fit.draws.theta
    if not len(theta):
        return None
    if fit.law.name == "isoflop":
        sizes = fit.law.value(theta, {"flops": np.array([budget.flops])})[:, 0]
    elif fit.law.name == "qat-loss":
        some = theta[:: max(1, len(theta) // 250)]  # each is a search over sizes and fractions
        width = optimum.bits or FULL_BITS
        sizes = np.array([budget.size(_best_quantized(fit, row[None], budget, width, cap, coarse=4)[0]) for row in some])
    else:
        sizes = budget.size(best_ratios(fit, theta, budget, cap)[0])
    low, high = (float(end) for end in fit.draws.interval(sizes))
    return (low, high) if high > 1.0001 * low else None  # the memory decides in all of them


def _choice(fit: Fit, name: str, parameters: float, ratio: float, best: float | None = None, **more: Any) -> Choice:
    tokens = ratio * parameters
    columns = {key: np.array([value]) for key, value in from_size_and_tokens(parameters, tokens).items()}
    if "bits" in fit.law.columns:
        share = more["qat_fraction"]
        columns |= {"bits": np.array([more["bits"]]), "qat_tokens": share * columns["tokens"]}
        columns["fp_tokens"] = columns["tokens"] - columns["qat_tokens"]
    forecast = fit.predict(columns)
    loss, low, high = (float(values[0]) for values in (forecast.value, forecast.low, forecast.high))
    return Choice(
        name=name,
        parameters=parameters,
        tokens=tokens,
        loss=loss,
        low=low if np.isfinite(low) else None,
        high=high if np.isfinite(high) else None,
        cost=None if best is None else loss - best,
        **more,
    )


def _alternatives(fit: Fit, budget: Budget, optimum: Choice, cap: float | None) -> tuple[Choice, ...]:
    """The same budget at other ratios, with the loss above the optimum's and the compute that this loses."""
    budgets = np.geomspace(budget.flops / 1e3, budget.flops * 1.001, 150)
    reachable = np.array([float(best_ratios(fit, fit.theta[None], replace(budget, flops=less))[1][0]) for less in budgets])
    ratios = {f"{ratio:g} tokens per parameter": ratio for ratio in RATIOS}
    if budget.served:
        size = float(Budget(budget.flops).size(best_ratios(fit, fit.theta[None], Budget(budget.flops), cap)[0][0]))
        ratios = {"the best size without serving": budget.least_ratio(size)} | ratios
    choices = []
    for name, ratio in ratios.items():
        size = float(budget.size(ratio))
        if ratio <= 0 or (cap is not None and size > 1.000001 * cap):
            continue
        choice = _choice(fit, name, size, ratio, optimum.loss)
        enough = float(np.exp(np.interp(-(choice.loss or 0.0), -reachable, np.log(budgets))))
        choices.append(replace(choice, wasted=max(0.0, 1.0 - enough / budget.flops)))
    return tuple(choices)


def _widths(
    roles: Mapping[str, Fit], quantized: Fit | None, budget: Budget, memory_gib: float | None, bits: Sequence[float]
) -> tuple[Choice, ...]:
    """For every bit width the best size, tokens and QAT fraction under the memory cap."""
    source = roles.get(_QUANTIZATION)
    known = set(source.runs["bits"]) & set(BITS) if source is not None and "bits" in source.runs.columns else set()
    if source is not None and not (bits or known):
        raise UserError(f"{source.law.name}: no fitted width is one of training's; type --bits 2,4,...")
    choices = []
    for width in sorted(bits or known):
        if quantized is not None:
            ratio, share = _best_quantized(quantized, quantized.theta[None], budget, width, _cap(memory_gib, width))
            size = float(budget.size(ratio))
            choices.append(_choice(quantized, f"{width:g}-bit weights", size, ratio, bits=width, qat_fraction=share))
            continue
        choice = _best(roles[_SIZE], budget, width, memory_gib)
        if source is not None:
            at = {"tokens": choice.tokens, "parameters": choice.parameters, "bits": width}
            share = float(source.predict({key: np.array([value]) for key, value in at.items()}).value[0])
            choice = replace(choice, qat_fraction=share)
        choices.append(choice)
    best = min((choice.loss for choice in choices if choice.loss is not None), default=None)
    return tuple(
        replace(choice, cost=None if choice.loss is None or best is None else choice.loss - best) for choice in choices
    )


def _best_quantized(
    fit: Fit, theta: Array, budget: Budget, width: float, cap: float | None, coarse: int = 1
) -> tuple[float, float]:
    """Tokens per parameter and QAT fraction of lowest loss at a width, on a grid; `coarse` leaves out all but every so many."""
    least = max(0.1, budget.least_ratio(cap))
    ratio = np.geomspace(least, max(_MOST_RATIO, 10 * least), 400)
    ratios, shares = (grid.ravel() for grid in np.meshgrid(ratio[::coarse], _SHARES[::coarse]))
    sizes = budget.size(ratios)
    tokens = ratios * sizes
    columns = {
        "parameters": sizes,
        "qat_tokens": shares * tokens,
        "fp_tokens": (1.0 - shares) * tokens,
        "bits": np.full_like(sizes, width),
    }
    best = int(np.argmin(fit.law.value(theta, columns)[0]))
    return float(ratios[best]), float(shares[best])


def _ladder(
    fit: Fit, optimum: Choice, budget: float, loss_law: bool
) -> tuple[tuple[Choice, ...], float | None, float | None, str]:
    """The ladder's runs, the interval before and after them, and why there are none."""
    if not loss_law or not len(fit.draws.theta):
        why = "the fit has no intervals" if loss_law else f"{fit.law.name} is no law of size and tokens alone"
        return (), None, None, f"no ladder of cheap runs: {why}"
    found = ladder(fit, optimum.parameters, optimum.tokens, budget)
    runs = tuple(
        _choice(fit, f"ladder-{number}", float(size), float(tokens / size))
        for number, (size, tokens) in enumerate(zip(found.parameters, found.tokens, strict=True), 1)
    )
    none = f"no ladder of cheap runs: none of {budget:.3g} FLOPs together would narrow the forecast by {100 * WORTH:g} %"
    return runs, found.before, found.after, "" if runs else none


def _with_more(choice: Choice, roles: Mapping[str, Fit], source: Fit, batch: float | None) -> Choice:
    """Add what other fits know about a choice (its error on tasks, its learning rate), its memory, and where it is far out."""
    columns = {key: np.array([value]) for key, value in from_size_and_tokens(choice.parameters, choice.tokens).items()}
    memory = choice.parameters * (choice.bits or FULL_BITS) / 8.0 / GIB
    more: dict[str, Any] = {"far": far_columns(source, _frame(choice)), "memory_gib": memory}
    error, rate = roles.get(_ERROR), roles.get(_RATE)
    if error is not None and error.chain is not None:
        more["error"] = float(error.predict(columns).value[0])
    elif error is not None and choice.loss is not None:
        more["error"] = float(error.predict({"loss": np.array([choice.loss])}).value[0])
    if rate is not None:
        forecast = rate.predict(columns | {"batch_tokens": np.array([batch])})
        more["learning_rate"] = float(forecast.value[0])
        low, high = float(forecast.law_low[0]), float(forecast.law_high[0])
        more |= {"learning_rate_low": low, "learning_rate_high": high} if np.isfinite(low) else {}
    return replace(choice, **more)


def _frame(choice: Choice, batch: float | None = None) -> pd.DataFrame:
    row = from_size_and_tokens(choice.parameters, choice.tokens) | {"bits": choice.bits, "batch_tokens": batch}
    return pd.DataFrame([{key: value for key, value in row.items() if value is not None}])


def _warnings(
    roles: Mapping[str, Fit],
    source: Fit,
    optimum: Choice,
    widths: Sequence[Choice],
    memory_gib: float | None,
    batch: float | None,
) -> list[str]:
    warnings = []
    for fit in {id(fit): fit for fit in (source, *roles.values())}.values():
        if optimum.bits is not None or "bits" not in fit.law.columns:
            warnings += [f"{fit.law.name}: {text}" for text in extrapolation(fit, _frame(optimum, batch))]
    cap = _cap(memory_gib, optimum.bits)
    if cap is not None and optimum.parameters > 0.999 * cap:
        bits = optimum.bits or FULL_BITS
        warnings.append(
            f"{memory_gib:g} GiB hold {cap:.3g} parameters at {bits:g} bits: the memory, not the compute, decides the size"
        )
    if source.law.name == "isoflop":
        warnings.append(
            "an isoflop fit knows the best size, not the loss: no cost of alternatives (a chinchilla fit of the same runs does)"
        )
    if widths and "bits" not in source.law.columns:
        warnings.append(
            "without a qat-loss fit the losses at few bits are those of full precision: what quantization costs is not in them"
        )
    for choice in widths:
        if choice.qat_fraction is not None and choice.qat_fraction < NO_FRACTION:
            warnings.append(
                f"{choice.bits:g} bits: the law's QAT fraction is 0 at so few tokens per byte of parameters; "
                "the command has no quantized phase"
            )
    return warnings
