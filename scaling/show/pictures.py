"""Pictures of fits: a law's own, and those of any fit. Greys, line styles and markers, so that paper will do."""

from dataclasses import replace
from typing import Any

import numpy as np

from scaling.fit.result import Fit, parameter_table
from scaling.laws.base.picture import Band, Contours, Crosses, Line, Mark, Panel, Picture, Points
from scaling.show.numbers import number

_MARKERS = "osD^v<>pPX*h"
_DASHES = ("-", "--", "-.", ":")
_NAMED = 25
"""Held-out runs that are drawn by name; of more the names cannot be read."""


def pictures(fit: Fit) -> list[tuple[str, str, Any]]:
    """(name, caption, figure) of a fit; the law's own first, where it has one."""
    drawn = []
    if fit.law.picture is not None:
        picture = fit.law.picture(replace(fit, chain=None))  # a law's picture is at known losses
        drawn.append(("law", picture.caption, _figure(picture)))
    drawn.append(
        ("residuals", "Fitted against actual, and what is left over. Names: the three runs furthest off.", _residuals(fit))
    )
    if len(fit.draws.theta):
        drawn.append(("intervals", "Parameters: estimate and 95 % interval, as multiples of the estimate.", _intervals(fit)))
    if len(fit.holdout):
        caption = "Runs that were not fitted: actual (cross) and predicted, with the 95 % interval of a run."
        drawn.append(("holdout", caption, _holdout(fit)))
    return drawn


def _axes(width: float = 8.0, columns: int = 1, height: float = 5.0) -> tuple[Any, Any]:
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=(width, height), layout="constrained")


def _figure(picture: Picture) -> Any:
    figure, axes = _axes(picture.width, len(picture.panels))
    for one, panel in zip(np.atleast_1d(axes), picture.panels, strict=True):
        _panel(one, panel)
    return figure


def _panel(axes: Any, panel: Panel) -> None:
    for before, mark in zip((None, *panel.marks), panel.marks, strict=False):
        match mark:
            case Line():
                style = {"linestyle": _DASHES[mark.dashes % len(_DASHES)], "linewidth": mark.width}
                axes.plot(mark.x, mark.y, color="black", label=mark.label, **style)
            case Points():
                shape, face = ("o", "0.7") if mark.group is None else (_MARKERS[mark.group], _grey(mark.group))
                style = {"color": "black", "marker": shape, "markerfacecolor": face, "markersize": mark.size}
                axes.plot(mark.x, mark.y, linestyle="none", **style)
                axes.plot([], [], linestyle=_line_of(mark, before), label=mark.label, **style)
            case Crosses():
                axes.plot(mark.x, mark.y, "x", color="black", markersize=mark.size, markeredgewidth=mark.edge, label=mark.label)
            case Band():
                _band(axes, mark)
            case Contours():
                lines = axes.contour(mark.x, mark.y, mark.value, levels=mark.levels, colors="black", linewidths=0.8)
                axes.clabel(lines, fmt="%.2f", fontsize="small")
    scales = {f"{axis}scale": "log" for axis in panel.log}
    limits = {name: ends for name, ends in (("xlim", panel.xlim), ("ylim", panel.ylim)) if ends is not None}
    axes.set(**scales, **limits)
    _finish(axes, panel.xlabel, panel.ylabel, panel.title, panel.legend)


def _line_of(points: Points, before: Mark | None) -> str:
    """The line style of points in a legend: points that follow a line of no name share their name with it."""
    if isinstance(before, Line) and before.label is None and points.group is not None:
        return _DASHES[before.dashes % len(_DASHES)]
    return "none"


def _band(axes: Any, band: Band) -> None:
    """A law and its interval, whose borders are drawn because it may be narrower than its line."""
    axes.plot(band.x, band.y, color="black", linewidth=1.2, label=band.label)
    if np.isfinite(band.low).any():
        axes.fill_between(band.x, band.low, band.high, color="0.85", linewidth=0, zorder=0, label="95 % interval")
        for border in (band.low, band.high):
            axes.plot(band.x, border, color="0.45", linewidth=0.7, zorder=1)


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
    furthest = {fit.labels[index]: index for index in np.argsort(np.abs(residuals))}  # of every run its furthest point
    for index in sorted(furthest.values(), key=lambda index: -abs(residuals[index]))[:3]:
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
    return _holdout_by_name(fit) if len(fit.holdout) <= _NAMED else _holdout_along(fit)


def _holdout_by_name(fit: Fit) -> Any:
    held = fit.holdout
    figure, axes = _axes(height=max(5.0, 1.0 + 0.35 * len(held)))
    places = np.arange(len(held))[::-1]
    for place, row in zip(places, held.to_dict("records"), strict=True):
        if np.isfinite(row["low"]):
            axes.plot([row["low"], row["high"]], [place, place], color="black", linewidth=2)
        labels = ("predicted", "actual") if place == 0 else (None, None)
        axes.plot([row["predicted"]], [place], "o", color="black", markerfacecolor="white", label=labels[0])
        axes.plot([row["actual"]], [place], "x", color="black", markersize=9, markeredgewidth=2, label=labels[1])
    axes.set_yticks(
        places,
        [f"{name}\n{100 * error:+.1f} %" for name, error in zip(held["name"], held["relative_error"], strict=True)],
        fontsize="small",
    )
    axes.set_ylim(-0.7, len(held) - 0.3)
    _finish(axes, fit.law.target, "", "held out: predicted and actual")
    return figure


def _holdout_along(fit: Fit) -> Any:
    """Many runs: how far each lies off its forecast, along compute, with the intervals."""
    held = fit.holdout
    against = next((name for name in ("flops", *fit.law.columns) if name in held.columns), None)
    held = held if against is None else held.sort_values(against)
    x = np.arange(len(held)) if against is None else held[against].to_numpy(dtype=float)
    predicted = held["predicted"].to_numpy()
    off, low, high = (100.0 * (held[name].to_numpy() / predicted - 1.0) for name in ("actual", "low", "high"))
    inside = (off >= low) & (off <= high)
    figure, axes = _axes(9)
    axes.vlines(x, low, high, color="0.8", linewidth=1.5, zorder=1, label="95 % interval of a run")
    axes.axhline(0, color="black", linewidth=1, zorder=2)
    axes.plot(x[inside], off[inside], "o", color="black", markerfacecolor="white", markersize=4, label="inside", zorder=3)
    axes.plot(x[~inside], off[~inside], "x", color="black", markersize=6, label="outside", zorder=3)
    if x.min() > 0 and x.max() > 20 * x.min():
        axes.set_xscale("log")
    title = f"{len(held)} held-out runs: {100 * inside.mean():.0f} % inside their intervals"
    _finish(axes, against or "run", "actual over predicted, per cent above", title)
    return figure


def _grey(index: int) -> str:
    return ("white", "0.75", "0.5", "0.25", "black")[index % 5]
