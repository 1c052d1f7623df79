"""Pictures of fits. Greys, line styles and markers, so that paper will do."""

from collections.abc import Callable
from typing import Any

import numpy as np

from scaling.fit import Fit
from scaling.fit_file import parameter_table
from scaling.laws.dual import Array
from scaling.laws.loss import from_size_and_tokens
from scaling.laws.qat import PAPER_A, best_fractions, qat_fraction, tokens_per_byte
from scaling.plan import Budget, best_ratios
from scaling.show import number

Rows = np.ndarray[Any, np.dtype[np.intp]]

_MARKERS = "osD^v<>pPX*h"
_LINES = ("-", "--", "-.", ":")
_MANY = 6  # curves that can still be told apart


def pictures(fit: Fit) -> list[tuple[str, str, Any]]:
    """(name, caption, figure) of a fit."""
    law: dict[str, Callable[[Fit], tuple[str, Any]]] = {
        "chinchilla": _iso_curves,
        "over-training": _parallel_lines,
        "downstream": _error_against_loss,
        "isoflop": _size_against_budget,
        "qat-fraction": _fraction_against_saturation,
        "qat-loss": _loss_against_fraction,
        "learning-rate": _rate_against_tokens,
    }
    found = []
    if fit.law.name in law:
        caption, figure = law[fit.law.name](fit)
        found.append(("law", caption, figure))
    found.append(
        ("residuals", "Fitted against actual, and what is left over. Names: the three runs furthest off.", _residuals(fit))
    )
    if len(fit.draws.theta):
        found.append(("intervals", "Parameters: estimate and 95 % interval, as multiples of the estimate.", _intervals(fit)))
    if len(fit.holdout):
        caption = "Runs that were not fitted: what came (cross) and what was predicted, with the 95 % interval of a run."
        found.append(("holdout", caption, _holdout(fit)))
    return found


def _axes(width: float = 8.0, columns: int = 1, height: float = 5.0) -> tuple[Any, Any]:
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=(width, height), layout="constrained")


def _groups(values: Array, most: int = _MANY) -> list[tuple[float, Rows]]:
    """Rows by value (within 3 %), or by `most` equal shares of the sorted values where there are more values than that."""
    order = np.argsort(values)
    starts = np.flatnonzero(np.diff(np.log(values[order])) > 0.03) + 1
    parts = np.split(order, starts) if len(starts) < most else np.array_split(order, most)
    return [(float(np.exp(np.log(values[part]).mean())), part) for part in parts if len(part)]


def _band(axes: Any, fit: Fit, x: Array, columns: dict[str, Any], label: str | None = None) -> None:
    """The law along `x`, and its 95 % interval, whose borders are drawn because it may be narrower than its line."""
    forecast = fit.predict({name: np.broadcast_to(value, x.shape).astype(float) for name, value in columns.items()})
    axes.plot(x, forecast.value, color="black", linewidth=1.2, label=label)
    if np.isfinite(forecast.law_low).all():
        axes.fill_between(x, forecast.law_low, forecast.law_high, color="0.85", linewidth=0, zorder=0, label="95 % interval")
        for border in (forecast.law_low, forecast.law_high):
            axes.plot(x, border, color="0.45", linewidth=0.7, zorder=1)


def _finish(axes: Any, xlabel: str, ylabel: str, title: str, legend: str | None = None) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        if axis.get_scale() != "log":
            continue
        if limits[1] > 100 * limits[0]:  # the decades are enough
            axis.set_minor_formatter(NullFormatter())
        else:
            few = limits[1] > 10 * limits[0]
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if 1e-3 <= value < 1e4 else f"{value:.0e}"))
            axis.set_minor_formatter(NullFormatter())
    if axes.get_legend_handles_labels()[1]:
        axes.legend(title=legend, fontsize="small", title_fontsize="small")


def _iso_curves(fit: Fit) -> tuple[str, Any]:
    figure, axes = _axes(12, 2)
    runs = fit.columns
    size, tokens, loss = runs["parameters"], runs["tokens"], fit.target
    for index, (flops, part) in enumerate(_groups(6.0 * size * tokens)):
        spread = np.geomspace(size[part].min() / 1.5, size[part].max() * 1.5, 80)
        curve = fit.law.value(fit.theta[None], from_size_and_tokens(spread, flops / (6.0 * spread)))[0]
        axes[0].plot(spread, curve, color="black", linestyle=_LINES[index % 4], linewidth=1)
        # Runs of a group differ in compute: what is shown is their distance from the law, at the curve's compute.
        there = fit.law.value(fit.theta[None], from_size_and_tokens(size[part], flops / (6.0 * size[part])))[0]
        moved = there + loss[part] - fit.fitted[part]
        axes[0].plot(
            size[part], moved, _MARKERS[index], color="black", markerfacecolor=_grey(index), label=f"{flops:.1e}", markersize=5
        )
    axes[0].set_xscale("log")
    _finish(axes[0], "parameters", "loss (nats per token)", "iso-FLOP curves", "FLOPs (mean of group)")
    wide = np.geomspace(size.min() / 2, size.max() * 4, 120), np.geomspace(tokens.min() / 2, tokens.max() * 4, 120)
    grid = np.meshgrid(*wide)
    value = fit.law.value(fit.theta[None], from_size_and_tokens(grid[0].ravel(), grid[1].ravel()))[0].reshape(grid[0].shape)
    levels = np.quantile(value, np.linspace(0.03, 0.9, 9))
    contour = axes[1].contour(*grid, value, levels=levels, colors="black", linewidths=0.8)
    axes[1].clabel(contour, fmt="%.2f", fontsize="small")
    axes[1].plot(size, tokens, "o", color="black", markerfacecolor="0.7", markersize=4, label="runs")
    budgets = np.geomspace((6 * size * tokens).min(), (6 * size * tokens).max() * 10, 30)
    ratios = [float(best_ratios(fit, fit.theta[None], Budget(float(budget)))[0][0]) for budget in budgets]
    best = np.array([Budget(float(budget)).size(ratio) for budget, ratio in zip(budgets, ratios, strict=True)])
    axes[1].plot(best, budgets / (6 * best), color="black", linewidth=2, linestyle="--", label="best for its FLOPs")
    axes[1].set(xscale="log", yscale="log", xlim=(wide[0][0], wide[0][-1]), ylim=(wide[1][0], wide[1][-1]))
    _finish(axes[1], "parameters", "tokens", "lines of equal loss")
    return (
        (
            "Left: loss against size at equal compute; runs moved along the law to the compute of their group's curve. "
            "Right: lines of equal loss, and the best way through them."
        ),
        figure,
    )


def _parallel_lines(fit: Fit) -> tuple[str, Any]:
    figure, axes = _axes(9)
    irreducible = float(fit.theta[fit.law.names.index("E")])
    flops, ratio = fit.columns["flops"], fit.columns["tokens_per_parameter"]
    held = fit.holdout if {"flops", "tokens_per_parameter"} <= set(fit.holdout.columns) else fit.holdout.iloc[:0]
    reach = np.geomspace(flops.min() / 2, 1.2 * max([flops.max() * 10.0, *held.get("flops", [])]), 60)
    # Held-out runs have lines of their ratios too, and a cross on top of the marker.
    count = len(flops)
    all_flops = np.concatenate([flops, held.get("flops", [])])
    losses = np.concatenate([fit.target, held.get("actual", [])]) - irreducible
    for index, (value, part) in enumerate(_groups(np.concatenate([ratio, held.get("tokens_per_parameter", [])]), 8)):
        line = fit.law.value(fit.theta[None], {"flops": reach, "tokens_per_parameter": np.full_like(reach, value)})[0]
        axes.plot(reach, line - irreducible, color="black", linestyle=_LINES[index % 4], linewidth=1)
        axes.plot(
            all_flops[part],
            losses[part],
            _MARKERS[index],
            color="black",
            markerfacecolor=_grey(index),
            label=f"{value:.3g}",
        )
    if len(held):
        cross = {"color": "black", "markersize": 13, "markeredgewidth": 1.5}
        axes.plot(all_flops[count:], losses[count:], "x", **cross, label="held out")
    axes.set(xscale="log", yscale="log")
    title = f"lines are parallel: slope -eta = {-fit.theta[fit.law.names.index('eta')]:.3g}"
    _finish(axes, "training FLOPs", f"loss - E (nats per token; E = {irreducible:.3f})", title, "tokens per parameter")
    return "Reducible loss against compute: one line for every ratio of tokens to parameters, all with the same slope.", figure


def _error_against_loss(fit: Fit) -> tuple[str, Any]:
    figure, axes = _axes()
    loss = fit.columns["loss"]
    lowest = min([loss.min(), *fit.holdout.get("loss", [])])
    reach = np.linspace(lowest - 0.1, loss.max() + 0.1, 100)
    _band(axes, Fit(**{**vars(fit), "chain": None}), reach, {"loss": reach})
    axes.plot(loss, fit.target, "o", color="black", markerfacecolor="0.7", label="fitted")
    if "loss" in fit.holdout:
        axes.plot(
            fit.holdout["loss"],
            fit.holdout["actual"],
            "x",
            color="black",
            markersize=9,
            markeredgewidth=2,
            label="held out, at its measured loss",
        )
    _finish(axes, "loss (nats per token)", "error", "error on tasks against loss")
    return "Error against loss; the band is the law's 95 % interval.", figure


def _size_against_budget(fit: Fit) -> tuple[str, Any]:
    figure, axes = _axes()
    flops = fit.columns["flops"]
    reach = np.geomspace(flops.min() / 2, flops.max() * 30, 60)
    _band(axes, fit, reach, {"flops": reach}, f"slope {fit.theta[0]:.3f}")
    axes.plot(flops, fit.target, "o", color="black", markerfacecolor="0.7", label="optimum of a budget")
    axes.set(xscale="log", yscale="log")
    _finish(axes, "training FLOPs", "best number of parameters", "the best size for a budget")
    return "The size of lowest loss for each budget, with the law and its 95 % interval.", figure


def _fraction_against_saturation(fit: Fit) -> tuple[str, Any]:
    figure, axes = _axes(9)
    columns = fit.columns
    ratio = tokens_per_byte(columns["tokens"], columns["parameters"], columns["bits"])
    reach = np.geomspace(max(1.05, ratio.min() / 2), ratio.max() * 3, 100)
    _band(axes, fit, reach, {"tokens": reach * 1e9, "parameters": 1e9, "bits": 8.0}, f"a = {fit.theta[0]:.3f}")
    paper = qat_fraction(reach, 1.0, 8.0, a=PAPER_A)
    axes.plot(reach, paper, color="black", linestyle=":", linewidth=1.5, label=f"a = {PAPER_A} (arXiv 2509.22935)")
    for index, (bits, part) in enumerate(_groups(columns["bits"])):
        axes.plot(
            ratio[part],
            fit.target[part],
            _MARKERS[index],
            color="black",
            markerfacecolor=_grey(index),
            label=f"{bits:.3g} bits",
        )
    axes.set_xscale("log")
    _finish(axes, "S: tokens per byte of parameters", "best QAT fraction", "the best fraction depends on S alone")
    return "The best QAT fraction against tokens per parameter byte: all widths and sizes on one line.", figure


def _loss_against_fraction(fit: Fit) -> tuple[str, Any]:
    figure, axes = _axes(12, 2)
    columns = fit.columns
    total = columns["qat_tokens"] + columns["fp_tokens"]
    size = float(np.unique(columns["parameters"])[0])
    for index, (tokens, part) in enumerate(
        _groups(np.where(columns["parameters"] == size, total, np.nan)[columns["parameters"] == size])
    ):
        rows = np.flatnonzero(columns["parameters"] == size)[part]
        rows = rows[columns["bits"][rows] == columns["bits"][rows].max()]
        share = np.linspace(0.01, 0.99, 99)
        line = {"parameters": np.full(99, size), "qat_tokens": share * tokens, "fp_tokens": (1 - share) * tokens,
                "bits": np.full(99, columns["bits"][rows].max())}  # fmt: skip
        axes[0].plot(share, fit.law.value(fit.theta[None], line)[0], color="black", linestyle=_LINES[index % 4], linewidth=1)
        axes[0].plot(columns["qat_tokens"][rows] / total[rows], fit.target[rows], _MARKERS[index], color="black",
                     markerfacecolor=_grey(index), label=f"{tokens:.2g}")  # fmt: skip
    widest = columns["bits"].max()
    _finish(axes[0], "QAT fraction", "loss (nats per token)", f"{size:.3g} parameters, {widest:g} bits", "tokens")
    for index, bits in enumerate(np.unique(columns["bits"])):
        sizes, lengths = (
            grid.ravel() for grid in np.meshgrid(np.unique(columns["parameters"]), np.geomspace(total.min(), total.max(), 8))
        )
        widths = np.full_like(sizes, bits)
        best = best_fractions(fit.theta[None], lengths, sizes, widths)[0]
        axes[1].plot(
            tokens_per_byte(lengths, sizes, widths),
            best,
            _MARKERS[index],
            color="black",
            markerfacecolor=_grey(index),
            label=f"{bits:g} bits",
        )
    reach = np.geomspace(1.5, 1e5, 100)
    axes[1].plot(reach, qat_fraction(reach, 1.0, 8.0, a=PAPER_A), color="black", linewidth=1, label=f"exp(-{PAPER_A} / ln S)")
    axes[1].set_xscale("log")
    _finish(axes[1], "S: tokens per byte of parameters", "best QAT fraction", "where the fitted law has its minimum")
    return (
        "Loss against QAT fraction for the smallest model at the widest weights, and the fraction of lowest loss against S.",
        figure,
    )


def _rate_against_tokens(fit: Fit) -> tuple[str, Any]:
    figure, axes = _axes()
    columns = fit.columns
    reach = np.geomspace(columns["tokens"].min() / 2, columns["tokens"].max() * 10, 60)
    _band(axes, fit, reach, {"tokens": reach, "batch_tokens": 4096.0}, f"a = {fit.theta[0]:.3g}, b = {fit.theta[1]:.3f}")
    for index, (batch, part) in enumerate(_groups(columns["batch_tokens"])):
        rate = fit.target[part] / (columns["batch_tokens"][part] / 4096.0)
        label = f"batch {batch:.3g} tokens"
        axes.plot(columns["tokens"][part], rate, _MARKERS[index], color="black", markerfacecolor=_grey(index), label=label)
    axes.set(xscale="log", yscale="log")
    _finish(axes, "tokens", "best peak learning rate / (batch tokens / 4096)", "learning rate")
    return "The best learning rate for each length and batch, over the batch.", figure


def _residuals(fit: Fit) -> Any:
    figure, axes = _axes(12, 2)
    actual, fitted, residuals = fit.target, fit.fitted, fit.residuals
    ends = [min(actual.min(), fitted.min()), max(actual.max(), fitted.max())]
    axes[0].plot(ends, ends, color="black", linewidth=1)
    axes[0].plot(actual, fitted, "o", color="black", markerfacecolor="0.7", markersize=5)
    if ends[0] > 0 and ends[1] > 20 * ends[0]:
        axes[0].set(xscale="log", yscale="log")
    _finish(axes[0], f"actual {fit.law.target}", "fitted", "fitted against actual")
    against = next((name for name in ("flops", *fit.law.columns) if name in fit.runs.columns), fit.law.columns[0])
    x = fit.runs[against].to_numpy(dtype=float)
    axes[1].axhline(0, color="black", linewidth=1)
    axes[1].plot(x, residuals, "o", color="black", markerfacecolor="0.7", markersize=5)
    middle = np.sqrt(x.min() * x.max()) if x.min() > 0 else x.mean()
    for index in np.argsort(-np.abs(residuals))[:3]:
        right = bool(x[index] > middle)
        offset = (-5 if right else 5, 4)
        axes[1].annotate(
            str(fit.runs["name"].iloc[index]), (x[index], residuals[index]), fontsize="x-small", xytext=offset,
            textcoords="offset points", ha="right" if right else "left",
        )  # fmt: skip
    if x.min() > 0 and x.max() > 20 * x.min():
        axes[1].set_xscale("log")
    _finish(axes[1], against, "log(fitted / actual)" if fit.objective.log else "fitted - actual", "residuals")
    return figure


def _intervals(fit: Fit) -> Any:
    table = {name: row for name, row in parameter_table(fit).items() if name not in fit.fixed and row["value"] != 0}
    figure, axes = _axes(9, height=1.5 + 0.45 * len(table))
    ends = {name: sorted((row["low"] / row["value"], row["high"] / row["value"])) for name, row in table.items()}
    known = [end for pair in ends.values() for end in pair if np.isfinite(end)]
    logarithmic = bool(known) and min(known) >= 0 and max(known) > 3 * min(known)
    for place, (name, row) in zip(range(len(table) - 1, -1, -1), table.items(), strict=True):
        if np.isfinite(row["low"]):
            shown = np.clip(ends[name], 1e-3, 1e3) if logarithmic else ends[name]
            axes.plot(shown, [place, place], color="black", linewidth=2)
        axes.plot([1], [place], "o", color="black", markerfacecolor="white")
        text = f"{number(row['value'])}  ({number(row['low'])} to {number(row['high'])})"
        axes.annotate(text, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize="small")
    axes.axvline(1, color="0.6", linewidth=1, zorder=0)
    axes.set_yticks(range(len(table) - 1, -1, -1), list(table))
    axes.set_ylim(-0.7, len(table) - 0.3)
    if logarithmic:
        axes.set_xscale("log")
    _finish(axes, "value / estimate (cut at a thousandth and a thousand)", "", f"95 % intervals ({fit.draws.method})")
    return figure


def _holdout(fit: Fit) -> Any:
    held = fit.holdout
    figure, axes = _axes()
    places = np.arange(len(held))[::-1]
    for place, row in zip(places, held.to_dict("records"), strict=True):
        if np.isfinite(row["low"]):
            axes.plot([row["low"], row["high"]], [place, place], color="black", linewidth=2)
        axes.plot(
            [row["predicted"]], [place], "o", color="black", markerfacecolor="white", label="predicted" if place == 0 else None
        )
        axes.plot(
            [row["actual"]],
            [place],
            "x",
            color="black",
            markersize=9,
            markeredgewidth=2,
            label="actual" if place == 0 else None,
        )
    axes.set_yticks(
        places,
        [f"{name}\n{100 * error:+.1f} %" for name, error in zip(held["name"], held["relative_error"], strict=True)],
        fontsize="small",
    )
    axes.set_ylim(-0.7, len(held) - 0.3)
    _finish(axes, fit.law.target, "", "held out: predicted and actual")
    return figure


def _grey(index: int) -> str:
    return ("white", "0.75", "0.5", "0.25", "black")[index % 5]
