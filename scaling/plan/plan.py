"""From fits to a plan: what to train under a budget, what alternatives cost, which cheap runs would sharpen the forecast."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from common.bits import BITS
from common.errors import UserError
from scaling.fit.doubts import first_doubts
from scaling.fit.result import Fit
from scaling.fit.warnings import REACH, extrapolation, far_columns
from scaling.laws.base.budget import Budget
from scaling.laws.base.columns import FULL_BITS, from_size_and_tokens
from scaling.laws.base.law import ERROR, QUANTIZATION, RATE, SIZE
from scaling.plan.choice import GIB, Choice, Plan, most_parameters
from scaling.plan.ladder import WORTH, ladder
from scaling.plan.roles import by_role, loss_laws
from scaling.plan.sanity import remarks, require_trust
from scaling.plan.train_command import NO_FRACTION

RATIOS = (2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0)
"""Tokens per parameter of the alternatives."""


def plan(
    fits: Sequence[Fit],
    flops: float,
    *,
    memory_gib: float | None = None,
    bits: Sequence[float] = (),
    inference_tokens: float | None = None,
    ladder_share: float = 0.05,
    batch_tokens: float | None = None,
    insist: bool = False,
) -> Plan:
    """Plan a run of `flops` FLOPs.

    Args:
        fits: one for the size, and at most one each for quantization, learning rate and error on tasks (`Law.role`).
        flops: the budget of training (with `inference_tokens`, of training and inference together).
        memory_gib: the weights must fit in it.
        bits: widths of weights to compare; a single one is what the run is to have.
        inference_tokens: tokens that the model will serve in its life.
        ladder_share: compute of the proposed ladder as a share of `flops`.
        batch_tokens: tokens of an optimizer step.
        insist: plan even beyond what the fitted runs can tell (`sanity.MOST_COMPUTE`).

    Raises:
        UserError: no fit gives the size, two answer the same question, runs cannot separate size from tokens, or no fit
            can serve an option.
    """
    roles = by_role(fits)
    request = _request(roles, fits, Budget(flops, inference_tokens or 0.0), memory_gib, bits, batch_tokens)
    widths = _widths(roles, request)
    optimum, source = _optimum(roles, widths, request)
    if not insist:
        require_trust(source, request.budget.flops)
    of_sizes = source is roles.get(SIZE) and source.law.target == "loss"
    alternatives = _alternatives(source, request.budget, optimum, request.cap(optimum.bits)) if of_sizes else ()
    near = _within_reach(source, optimum, request) if of_sizes else None
    steps, before, after, none = _ladder(source, optimum, ladder_share * flops, of_sizes)

    def complete(choice: Choice) -> Choice:
        return _with_more(choice, roles, source, request.batch)

    optimum = complete(optimum)
    return Plan(
        budget=request.budget,
        optimum=optimum,
        near=None if near is None else complete(near),
        parameters_range=_size_range(source, optimum, request),
        alternatives=tuple(map(complete, alternatives)),
        widths=tuple(map(complete, widths)),
        ladder=tuple(map(complete, steps)),
        ladder_before=before,
        ladder_after=after,
        no_ladder=none,
        doubts=tuple(first_doubts(fits)),
        warnings=(*_warnings(roles, source, optimum, widths, request), *remarks(optimum, context_of(fits))),
        context=context_of(fits),
        memory_gib=memory_gib,
        batch_tokens=batch_tokens,
    )


def context_of(fits: Sequence[Fit]) -> Mapping[str, Any]:
    """What the configurations of the fitted runs have in common, from the first fit that knows."""
    return next((fit.context for fit in fits if fit.context), {})


@dataclass(frozen=True)
class _Request:
    """What is asked of a plan."""

    budget: Budget
    memory_gib: float | None
    bits: Sequence[float]
    batch: float | None
    """tokens of an optimizer step: as asked for, or as in the fitted runs"""

    def cap(self, bits: float | None) -> float | None:
        """The most parameters at a width."""
        return most_parameters(self.memory_gib, bits)


def _request(
    roles: Mapping[str, Fit],
    fits: Sequence[Fit],
    budget: Budget,
    memory_gib: float | None,
    bits: Sequence[float],
    batch_tokens: float | None,
) -> _Request:
    """Refuse what the fits cannot serve."""
    sizing = roles.get(SIZE)
    if sizing is not None and sizing.law.target != "loss" and (memory_gib or budget.served):
        raise UserError(
            f"{sizing.law.name} gives the best size for compute alone: --memory-gib and --inference-tokens need a loss law"
        )
    batches = [fit.context["config"].get("train.batch_tokens") for fit in fits if "config" in fit.context]
    batch = batch_tokens or (float(batches[0]) if batches and batches[0] else None)
    if RATE in roles and batch is None and "batch_tokens" in roles[RATE].law.columns:
        raise UserError("the best learning rate depends on the batch, which the fitted runs do not say: type --batch-tokens B")
    return _Request(budget, memory_gib, bits, batch)


def _loss_of_widths(roles: Mapping[str, Fit]) -> Fit | None:
    """The fit that says what a width costs in loss."""
    fit = roles.get(QUANTIZATION)
    return fit if fit is not None and fit.law.target == "loss" else None


def _optimum(roles: Mapping[str, Fit], widths: Sequence[Choice], request: _Request) -> tuple[Choice, Fit]:
    """The best run, and the fit that chose it. Of several widths only a loss law can choose one."""
    sizing, quantized = roles.get(SIZE), _loss_of_widths(roles)
    if sizing is not None and not (request.bits and (quantized is not None or len(request.bits) == 1)):
        return _best(sizing, request, None), sizing
    source = quantized or sizing
    assert source is not None
    return replace(min(widths, key=lambda choice: choice.loss or np.inf), name="optimum"), source


def _within_reach(fit: Fit, optimum: Choice, request: _Request) -> Choice | None:
    """The best run whose tokens per parameter are no further from the fitted ones than a law is believed (`REACH`).

    None where that is the optimum, or a larger model than the memory holds.
    """
    if "tokens_per_parameter" not in fit.runs.columns:
        return None
    known, reach = fit.runs["tokens_per_parameter"], REACH["tokens_per_parameter"]
    ratio = optimum.tokens / optimum.parameters
    nearest = float(np.clip(ratio, known.min() / reach, known.max() * reach))
    size, cap = float(request.budget.size(nearest)), request.cap(optimum.bits)
    if nearest == ratio or (cap is not None and size > cap):
        return None
    return _choice(fit, "near the fitted runs", size, nearest * size, optimum.loss, bits=optimum.bits)


def _best(fit: Fit, request: _Request, bits: float | None) -> Choice:
    """The best run for the budget, at a width where one is given."""
    name = "optimum" if bits is None else f"{bits:g}-bit weights"
    best = fit.law.best_runs(fit.theta[None], request.budget, cap=request.cap(bits), bits=bits, measured=fit.measured())
    parameters, tokens = float(best.parameters[0]), float(best.tokens[0])
    share = None if best.qat_fraction is None else float(best.qat_fraction[0])
    if best.loss is None:
        return Choice(name=name, parameters=parameters, tokens=tokens, bits=bits, qat_fraction=share)
    return _choice(fit, name, parameters, tokens, bits=bits, qat_fraction=share)


def _size_range(fit: Fit, optimum: Choice, request: _Request) -> tuple[float, float] | None:
    """95 % interval of the best size; None where there are no draws, or nothing but the cap decides."""
    theta = fit.draws.theta
    if not len(theta):
        return None
    cap = request.cap(optimum.bits)
    sizes = fit.law.best_runs(theta, request.budget, cap=cap, bits=optimum.bits or FULL_BITS, quick=True).parameters
    low, high = (float(end) for end in fit.draws.interval(sizes))
    return (low, high) if high > 1.0001 * low else None  # the memory decides in all of them


def _choice(fit: Fit, name: str, parameters: float, tokens: float, best: float | None = None, **more: Any) -> Choice:
    """A run with the forecast of a loss law; `best` is the loss that it is compared with."""
    columns = {key: np.array([value]) for key, value in from_size_and_tokens(parameters, tokens).items()}
    if "bits" in fit.law.columns:
        share = more["qat_fraction"]
        columns |= {"bits": np.array([more["bits"]]), "activation_bits": np.array([FULL_BITS])}
        columns["qat_tokens"] = share * columns["tokens"]
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
    law, theta = fit.law, fit.theta[None]
    budgets = np.geomspace(budget.flops / 1e3, budget.flops * 1.001, 150)
    lowest = [law.best_runs(theta, replace(budget, flops=less)).loss for less in budgets]
    reachable = np.array([float(loss[0]) for loss in lowest if loss is not None])
    ratios = {f"{ratio:g} tokens per parameter": ratio for ratio in RATIOS}
    if budget.served:
        size = float(law.best_runs(theta, Budget(budget.flops), cap=cap).parameters[0])
        ratios = {"the best size without serving": budget.least_ratio(size)} | ratios
    choices = []
    for name, ratio in ratios.items():
        size = float(budget.size(ratio))
        if ratio <= 0 or (cap is not None and size > 1.000001 * cap):
            continue
        choice = _choice(fit, name, size, ratio * size, optimum.loss)
        enough = float(np.exp(np.interp(-(choice.loss or 0.0), -reachable, np.log(budgets))))
        choices.append(replace(choice, wasted=max(0.0, 1.0 - enough / budget.flops)))
    return tuple(choices)


def _widths(roles: Mapping[str, Fit], request: _Request) -> tuple[Choice, ...]:
    """For every bit width the best size, tokens and QAT fraction under the memory cap."""
    source, quantized = roles.get(QUANTIZATION), _loss_of_widths(roles)
    known = set(source.runs["bits"]) & set(BITS) if source is not None and "bits" in source.runs.columns else set()
    if source is not None and not (request.bits or known):
        raise UserError(f"{source.law.name}: no fitted width is one of training's; type --bits 2,4,...")
    choices = []
    for width in sorted(request.bits or known):
        choice = _best(quantized or roles[SIZE], request, width)
        if source is not None and quantized is None:
            at = {"tokens": choice.tokens, "parameters": choice.parameters, "bits": width}
            share = float(source.predict({key: np.array([value]) for key, value in at.items()}).value[0])
            choice = replace(choice, qat_fraction=share)
        choices.append(choice)
    best = min((choice.loss for choice in choices if choice.loss is not None), default=None)
    return tuple(
        replace(choice, cost=None if choice.loss is None or best is None else choice.loss - best) for choice in choices
    )


def _ladder(
    fit: Fit, optimum: Choice, budget: float, of_sizes: bool
) -> tuple[tuple[Choice, ...], float | None, float | None, str]:
    """The ladder's runs, the interval before and after them, and why there are none."""
    if not of_sizes or not len(fit.draws.theta):
        why = "the fit has no intervals" if of_sizes else f"{fit.law.name} is no law of size and tokens alone"
        return (), None, None, f"no ladder of cheap runs: {why}"
    steps = ladder(fit, optimum.parameters, optimum.tokens, budget)
    runs = tuple(
        _choice(fit, f"ladder-{number}", float(size), float(ratio) * float(size))
        for number, (size, ratio) in enumerate(zip(steps.parameters, steps.tokens_per_parameter, strict=True), 1)
    )
    none = f"no ladder of cheap runs: none of {budget:.3g} FLOPs together would narrow the forecast by {100 * WORTH:g} %"
    return runs, steps.before, steps.after, "" if runs else none


def _with_more(choice: Choice, roles: Mapping[str, Fit], source: Fit, batch: float | None) -> Choice:
    """Add what other fits know about a choice (its error on tasks, its learning rate), its memory, and where it is far out."""
    columns = {key: np.array([value]) for key, value in from_size_and_tokens(choice.parameters, choice.tokens).items()}
    memory = choice.parameters * (choice.bits or FULL_BITS) / 8.0 / GIB
    more: dict[str, Any] = {"far": far_columns(source, _frame(choice)), "memory_gib": memory}
    error, rate = roles.get(ERROR), roles.get(RATE)
    if error is not None and error.chain is not None:
        more["error"] = float(error.predict(columns).value[0])
    elif error is not None and choice.loss is not None:
        more["error"] = float(error.predict({"loss": np.array([choice.loss])}).value[0])
    if rate is not None:
        forecast = rate.predict(columns | ({} if batch is None else {"batch_tokens": np.array([batch])}))
        more["learning_rate"] = float(forecast.value[0])
        low, high = float(forecast.law_low[0]), float(forecast.law_high[0])
        more |= {"learning_rate_low": low, "learning_rate_high": high} if np.isfinite(low) else {}
    return replace(choice, **more)


def _frame(choice: Choice, batch: float | None = None) -> pd.DataFrame:
    row = from_size_and_tokens(choice.parameters, choice.tokens) | {"bits": choice.bits, "batch_tokens": batch}
    return pd.DataFrame([{key: value for key, value in row.items() if value is not None}])


def _warnings(roles: Mapping[str, Fit], source: Fit, optimum: Choice, widths: Sequence[Choice], request: _Request) -> list[str]:
    warnings = []
    for fit in {id(fit): fit for fit in (source, *roles.values())}.values():
        if optimum.bits is not None or "bits" not in fit.law.columns:
            warnings += [f"{fit.law.name}: {text}" for text in extrapolation(fit, _frame(optimum, request.batch))]
    cap = request.cap(optimum.bits)
    if cap is not None and optimum.parameters > 0.999 * cap:
        warnings.append(
            f"{request.memory_gib:g} GiB hold {cap:.3g} parameters at {optimum.bits or FULL_BITS:g} bits: "
            "the memory, not the compute, decides the size"
        )
    if source.law.target != "loss":
        warnings.append(
            f"a fit of {source.law.name} gives the best size, not the loss: alternatives have no cost "
            f"(a fit of {loss_laws(SIZE)} to the same runs gives it)"
        )
    if widths and "bits" not in source.law.columns:
        warnings.append(
            f"without a fit of {loss_laws(QUANTIZATION)} the losses at few bits are those of full precision: "
            "what quantization costs is not in them"
        )
    for choice in widths:
        if choice.qat_fraction is not None and choice.qat_fraction < NO_FRACTION:
            warnings.append(
                f"{choice.bits:g} bits: the law's QAT fraction is 0 at so few tokens per byte of parameters; "
                "the command has no quantized phase"
            )
    return warnings
