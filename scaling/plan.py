"""From fits to decisions: what to train under a budget, what every alternative costs, which cheap runs would tell more.

Compute is 6 N D for training and 2 N for every token of inference (Kaplan et al., arXiv 2001.08361, section 2.1; with inference
as in Sardana et al., arXiv 2401.00448). A model of N parameters at B bits takes N B / 8 bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scaling.errors import UserError
from scaling.fit import Fit
from scaling.laws.dual import Array
from scaling.laws.loss import from_size_and_tokens, one_ratio
from scaling.trust import FAR, unknown_parameters

RATIOS = (2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0)
"""Tokens per parameter of the alternatives."""
GIB = 2.0**30
_SIZE_COLUMNS = {"parameters", "tokens", "flops", "tokens_per_parameter"}
_SHARES = np.linspace(0.01, 0.99, 99)


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
    qat_fraction: float | None = None
    memory_gib: float | None = None
    error: float | None = None
    learning_rate: float | None = None

    @property
    def flops(self) -> float:
        """Of training."""
        return 6.0 * self.parameters * self.tokens


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Cheap runs that would narrow the forecast."""

    runs: tuple[Choice, ...]
    before: float
    """half the width of the law's 95 % interval at the optimum"""
    after: float
    """the same, expected after the runs"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer to one budget."""

    flops: float
    optimum: Choice
    parameters_range: tuple[float, float] | None
    """95 % interval of the best size"""
    alternatives: tuple[Choice, ...] = ()
    inference: tuple[Choice, ...] = ()
    widths: tuple[Choice, ...] = ()
    ladder: Ladder | None = None
    warnings: tuple[str, ...] = ()
    context: Mapping[str, Any] = field(default_factory=dict)


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
    """Plan a run of `flops` training FLOPs.

    Args:
        fits: a loss law or an isoflop law; beside it any of qat-loss, qat-fraction, learning-rate, downstream.
        flops: the budget (with `inference_tokens`, also that of training and inference together).
        memory_gib: the weights must fit in it.
        bits: widths of weights to compare.
        inference_tokens: tokens that the model will serve in its life.
        ladder_share: compute of the proposed ladder as a share of `flops`.
        batch_tokens: for a learning rate, where the runs do not say.

    Raises:
        UserError: no fit to plan from, or one whose runs cannot tell size from tokens.
    """
    by_name = {fit.law.name: fit for fit in fits}
    loss_fits = [fit for fit in fits if fit.law.target == "loss" and set(fit.law.columns) <= _SIZE_COLUMNS]
    sizing = loss_fits[0] if loss_fits else by_name.get("isoflop")
    quantized = by_name.get("qat-loss")
    if sizing is None and quantized is None:
        names = ", ".join(by_name)
        raise UserError(f"no plan follows from {names} alone: add a fit of chinchilla, over-training, isoflop or qat-loss")
    for fit in (fit for fit in (sizing, quantized) if fit is not None):
        _require_identified(fit)
    warnings: list[str] = []
    widths = _widths(by_name, loss_fits, flops, memory_gib, bits, warnings)
    cap = None if memory_gib is None else memory_gib * GIB / 2.0
    if sizing is None:
        optimum, spread = min(widths, key=lambda choice: choice.loss or np.inf), None
    elif sizing.law.name == "isoflop":
        optimum, spread = _isoflop_optimum(sizing, flops)
        warnings.append(
            "an isoflop fit knows the best size, not the loss: no cost of alternatives (add a chinchilla fit of the same runs)"
        )
    else:
        optimum, spread = _loss_optimum(sizing, flops, cap)
        if cap is not None and optimum.parameters > 0.999 * cap:
            warnings.append(
                f"{memory_gib:g} GiB hold {cap:.3g} parameters at 16 bits: the memory, not the compute, decides the size"
            )
    optimum = _with_more(optimum, by_name, batch_tokens or _batch(fits))
    main = sizing or quantized
    assert main is not None
    if "flops" in main.runs.columns and flops > FAR * main.runs["flops"].max():
        largest = float(main.runs["flops"].max())
        warnings.append(
            f"the budget is {flops / largest:.0f} times the largest fitted compute: a ladder of runs in between would tell more"
        )
    loss_fit = loss_fits[0] if loss_fits else None
    return Plan(
        flops=flops,
        optimum=optimum,
        parameters_range=spread,
        alternatives=_alternatives(loss_fit, flops, cap) if loss_fit else (),
        inference=_inference(loss_fit, flops, inference_tokens) if loss_fit and inference_tokens else (),
        widths=widths,
        ladder=ladder(loss_fit, optimum, ladder_share * flops) if loss_fit and len(loss_fit.draws.theta) else None,
        warnings=tuple(warnings),
        context=next((fit.context for fit in fits if fit.context), {}),
    )


def _require_identified(fit: Fit) -> None:
    unknown = unknown_parameters(fit)
    ratio = fit.runs["tokens_per_parameter"].to_numpy() if "tokens_per_parameter" in fit.runs.columns else None
    single = one_ratio({"tokens_per_parameter": ratio}) if ratio is not None and fit.law.name != "isoflop" else []
    if unknown or single or len(fit.runs) < len(fit.law.names) - len(fit.fixed):
        why = single[0] if single else f"its runs do not determine {', '.join(unknown or fit.law.names)}"
        raise UserError(f"no plan from this {fit.law.name} fit: {why}\nIt needs {fit.law.needs or 'runs that differ more'}")


def _batch(fits: Sequence[Fit]) -> float | None:
    batches = [fit.context["config"].get("train.batch_tokens") for fit in fits if "config" in fit.context]
    return float(batches[0]) if batches and batches[0] else None


def best_sizes(fit: Fit, theta: Array, flops: float, cap: float | None = None) -> tuple[Array, Array]:
    """The size of lowest loss under 6 N D = flops, and that loss, per parameter vector; sizes on a grid of 0.1 % steps."""
    size = np.exp(np.arange(np.log(np.sqrt(flops / 6.0 / 1e6)), np.log(np.sqrt(flops / 6.0 / 1e-2)), 1e-2))
    size = size[size <= cap] if cap is not None and cap < size[-1] else size
    if cap is not None and (not len(size) or cap > size[-1]):
        size = np.append(size, cap) if not len(size) or cap < size[-1] * 1.011 else size
    value = fit.law.value(theta, from_size_and_tokens(size, flops / (6.0 * size)))
    at = np.argmin(value, axis=1)
    inner = np.clip(at, 1, max(len(size) - 2, 1))
    if len(size) < 3:
        return size[at], value.min(axis=1)
    rows = np.arange(len(theta))
    left, middle, right = (value[rows, inner + shift] for shift in (-1, 0, 1))
    bend = left - 2.0 * middle + right
    shift = np.where((at == inner) & (bend > 0), 0.5 * (left - right) / np.where(bend > 0, bend, 1.0), 0.0)
    best = np.where(at == inner, size[inner] * np.exp(1e-2 * np.clip(shift, -1, 1)), size[at])
    best = best if cap is None else np.minimum(best, cap)
    return best, value.min(axis=1)


def _loss_optimum(fit: Fit, flops: float, cap: float | None) -> tuple[Choice, tuple[float, float] | None]:
    size = float(best_sizes(fit, fit.theta[None], flops, cap)[0][0])
    spread = None
    if len(fit.draws.theta):
        low, high = fit.draws.interval(best_sizes(fit, fit.draws.theta, flops, cap)[0])
        spread = (float(low), float(high))
    return _choice(fit, "optimum", size, flops / (6.0 * size)), spread


def _isoflop_optimum(fit: Fit, flops: float) -> tuple[Choice, tuple[float, float] | None]:
    forecast = fit.predict({"flops": np.array([flops])})
    size = float(forecast.value[0])
    spread = (float(forecast.law_low[0]), float(forecast.law_high[0])) if np.isfinite(forecast.law_low[0]) else None
    return Choice(name="optimum", parameters=size, tokens=flops / (6.0 * size)), spread


def _choice(fit: Fit, name: str, parameters: float, tokens: float, best: float | None = None, **more: Any) -> Choice:
    columns = {key: np.array([value]) for key, value in from_size_and_tokens(parameters, tokens).items()}
    if more.get("bits") is not None and more.get("qat_fraction") is not None:
        share = more["qat_fraction"]
        columns |= {
            "bits": np.array([more["bits"]]),
            "qat_tokens": np.array([share * tokens]),
            "fp_tokens": np.array([(1 - share) * tokens]),
        }
    forecast = fit.predict(columns)
    loss = float(forecast.value[0])
    low, high = float(forecast.low[0]), float(forecast.high[0])
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


def _alternatives(fit: Fit, flops: float, cap: float | None) -> tuple[Choice, ...]:
    """The same compute at other ratios, with the loss above the optimum's and the compute that this loses."""
    budgets = np.geomspace(flops / 1e3, flops * 1.001, 400)
    reachable = np.array([float(best_sizes(fit, fit.theta[None], float(budget))[1][0]) for budget in budgets])
    best = float(best_sizes(fit, fit.theta[None], flops)[1][0])
    choices = []
    for ratio in RATIOS:
        size = float(np.sqrt(flops / (6.0 * ratio)))
        choice = _choice(fit, f"{ratio:g} tokens per parameter", size, ratio * size, best, memory_gib=size * 2.0 / GIB)
        assert choice.loss is not None
        enough = float(np.exp(np.interp(-choice.loss, -reachable, np.log(budgets))))
        wasted = max(0.0, 1.0 - enough / flops)
        choices.append(Choice(**{**vars(choice), "wasted": wasted}))
    return tuple(choice for choice in choices if cap is None or choice.parameters <= cap)


def _inference(fit: Fit, flops: float, served: float) -> tuple[Choice, ...]:
    """`flops` for training and for serving `served` tokens together: the best size, and the training optimum beside it."""
    size = np.exp(np.linspace(np.log(1e-4), np.log(0.999), 2000)) * flops / (2.0 * served)
    size = size[size <= np.sqrt(flops / 6.0 / 1e-2)]
    tokens = (flops - 2.0 * size * served) / (6.0 * size)
    value = fit.law.value(fit.theta[None], from_size_and_tokens(size, tokens))[0]
    best = int(np.argmin(value))
    lifetime = _choice(
        fit, f"serving {served:.3g} tokens within the budget", float(size[best]), float(tokens[best]), float(value[best])
    )
    naive = float(best_sizes(fit, fit.theta[None], flops)[0][0])
    rest = (flops - 2.0 * naive * served) / (6.0 * naive)
    if rest <= 0:
        return (lifetime,)
    return lifetime, _choice(fit, "the training optimum's size within it", naive, rest, float(value[best]))


def _widths(
    by_name: Mapping[str, Fit],
    loss_fits: Sequence[Fit],
    flops: float,
    memory_gib: float | None,
    bits: Sequence[float],
    warnings: list[str],
) -> tuple[Choice, ...]:
    """For every bit width the best size, tokens and QAT fraction under the memory cap."""
    quantized, fraction = by_name.get("qat-loss"), by_name.get("qat-fraction")
    if quantized is None and fraction is None and not bits:
        return ()
    source = quantized or fraction
    known = source.runs["bits"].unique() if source is not None and "bits" in source.runs.columns else (2.0, 4.0)
    choices = []
    for width in sorted(set(bits) or set(map(float, known))):
        cap = np.inf if memory_gib is None else memory_gib * GIB * 8.0 / width
        if quantized is not None:
            choices.append(_best_at_width(quantized, width, flops, cap))
        elif loss_fits:
            size = float(best_sizes(loss_fits[0], loss_fits[0].theta[None], flops, cap if np.isfinite(cap) else None)[0][0])
            share = None
            if fraction is not None:
                at = {"tokens": np.array([flops / (6.0 * size)]), "parameters": np.array([size]), "bits": np.array([width])}
                share = float(fraction.predict(at).value[0])
            more = {"bits": width, "qat_fraction": share, "memory_gib": size * width / 8.0 / GIB}
            choices.append(_choice(loss_fits[0], f"{width:g}-bit weights", size, flops / (6.0 * size), **more))
    if quantized is None and choices:
        warnings.append(
            "without a qat-loss fit the losses at few bits are those of full precision: what quantization costs is not in them"
        )
    losses = [choice.loss for choice in choices if choice.loss is not None]
    best = min(losses, default=0.0)
    return tuple(Choice(**{**vars(choice), "cost": None if choice.loss is None else choice.loss - best}) for choice in choices)


def _best_at_width(fit: Fit, width: float, flops: float, cap: float) -> Choice:
    size = np.geomspace(np.sqrt(flops / 6.0 / 1e6), np.sqrt(flops / 6.0 / 1e-1), 400)
    size = size[size <= cap]
    size = np.append(size, cap) if np.isfinite(cap) and cap < np.sqrt(flops / 6.0 / 1e-1) else size
    sizes, shares = (grid.ravel() for grid in np.meshgrid(size, _SHARES))
    tokens = flops / (6.0 * sizes)
    columns = {
        "parameters": sizes,
        "qat_tokens": shares * tokens,
        "fp_tokens": (1.0 - shares) * tokens,
        "bits": np.full_like(sizes, width),
    }
    best = int(np.argmin(fit.law.value(fit.theta[None], columns)[0]))
    chosen, share = float(sizes[best]), float(shares[best])
    more = {"bits": width, "qat_fraction": share, "memory_gib": chosen * width / 8.0 / GIB}
    return _choice(fit, f"{width:g}-bit weights", chosen, flops / (6.0 * chosen), **more)


def _with_more(choice: Choice, by_name: Mapping[str, Fit], batch_tokens: float | None) -> Choice:
    """Add what other fits know about the optimum: its error on tasks, its learning rate."""
    more: dict[str, Any] = {}
    if "downstream" in by_name:
        fit = by_name["downstream"]
        loss = choice.loss
        if fit.chain is not None:
            columns = {key: np.array([value]) for key, value in from_size_and_tokens(choice.parameters, choice.tokens).items()}
            more["error"] = float(fit.predict(columns).value[0])
        elif loss is not None:
            more["error"] = float(fit.predict({"loss": np.array([loss])}).value[0])
    if "learning-rate" in by_name and batch_tokens:
        columns = {"tokens": np.array([choice.tokens]), "batch_tokens": np.array([batch_tokens])}
        more["learning_rate"] = float(by_name["learning-rate"].predict(columns).value[0])
    return Choice(**{**vars(choice), **more})


def ladder(fit: Fit, goal: Choice, budget: float, most: int = 6) -> Ladder:
    """Runs that together cost `budget` FLOPs at most and narrow the forecast at `goal` the most, chosen one after the other.

    Linearised: the forecast's variance is g' (J'J)^-1 g, g the forecast's gradient and J the Jacobian of the runs (c-optimal
    design; Atkinson and Donev, Optimum Experimental Designs, 1992). `after` scales the draws' interval by the ratio of roots.
    """
    jacobian = fit.jacobian()
    information = jacobian.T @ jacobian
    information += 1e-12 * np.diag(np.diag(information))
    gradient = fit.gradient(from_size_and_tokens(np.array([goal.parameters]), np.array([goal.tokens])))[0]
    candidates = _candidates(fit, goal)
    rows = fit.gradient(candidates)
    first = variance = float(gradient @ np.linalg.solve(information, gradient))
    chosen: list[Choice] = []
    unused, left = np.ones(len(rows), dtype=bool), budget
    for number in range(1, most + 1):
        share = left / min(2, most - number + 1)  # one run may take half of what is left
        allowed = np.flatnonzero((candidates["flops"] <= share) & unused)
        if not len(allowed):
            break
        solved = np.linalg.solve(information, gradient)
        reach = np.linalg.solve(information, rows[allowed].T)
        gain = (rows[allowed] @ solved) ** 2 / (1.0 + np.sum(rows[allowed] * reach.T, axis=1))
        pick = allowed[int(np.argmax(gain))]
        if gain.max() < 0.01 * variance:
            break
        information += np.outer(rows[pick], rows[pick])
        unused[pick] = False
        variance -= float(gain.max())
        left -= float(candidates["flops"][pick])
        chosen.append(
            _choice(fit, f"ladder-{number}", float(candidates["parameters"][pick]), float(candidates["tokens"][pick]))
        )
    forecast = fit.predict(
        {key: np.array([value]) for key, value in from_size_and_tokens(goal.parameters, goal.tokens).items()}
    )
    before = float(forecast.law_high[0] - forecast.law_low[0]) / 2.0
    return Ladder(runs=tuple(chosen), before=before, after=before * float(np.sqrt(max(variance, 0.0) / first)))


def _candidates(fit: Fit, goal: Choice) -> dict[str, Array]:
    """Sizes from the smallest fitted to the goal's, at ratios from 10 (below, laws are known to break) to 640."""
    smallest = float(fit.runs["parameters"].min()) if "parameters" in fit.runs.columns else goal.parameters / 1e3
    sizes = np.geomspace(min(smallest, goal.parameters), goal.parameters, 24)
    size, ratio = np.meshgrid(sizes, np.geomspace(10.0, 640.0, 7))
    return from_size_and_tokens(size.ravel(), (size * ratio).ravel())
