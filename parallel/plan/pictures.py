"""Pictures: memory by part, the timeline of a step on every pipeline rank, curves over numbers of devices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from parallel.plan.forecast import Forecast
from parallel.plan.memory import PARTS, capacity_gib
from parallel.plan.simulate import Point
from parallel.plan.timeline import timeline

COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bbbbbb", "#444444", "#dddddd")


def plan_picture(best: Sequence[Forecast], path: Path) -> None:
    """Memory by part of the layouts, and the first one's step on every pipeline rank."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    memory, steps = figure.subplots(2, 1, height_ratios=[1, 1.2])
    _memory(memory, best)
    _timeline(steps, best[0])
    figure.savefig(path, dpi=130)


def _memory(axes: Any, best: Sequence[Forecast]) -> None:
    names = [fill(said.job.choice.words().replace(",", " "), 44) for said in best]
    left = [0.0] * len(best)
    for part, colour in zip(PARTS, COLOURS, strict=True):
        sizes = [said.memory_gib[part] for said in best]
        if max(sizes) > 0.005 * max(said.memory_gib["total"] for said in best):
            axes.barh(range(len(best)), sizes, left=left, color=colour, label=part, height=0.7)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    room = capacity_gib(best[0].job)
    axes.axvline(room, color="black", linestyle="--", linewidth=1)
    axes.set_title(f"GiB on the fullest rank; dashed: the {room:.1f} that a run can have", fontsize=9)
    axes.set_yticks(range(len(best)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(room, *left))
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7)


def _timeline(axes: Any, said: Forecast) -> None:
    colours = {
        "forward": COLOURS[0],
        "backward": COLOURS[2],
        "weights": COLOURS[3],
        "reduction": COLOURS[4],
        "optimizer": COLOURS[5],
    }
    seen: set[str] = set()
    ranks = 0
    for bar in timeline(said.job):
        label = bar.what if bar.what not in seen else None
        seen.add(bar.what)
        axes.barh(
            bar.rank,
            bar.seconds,
            left=bar.start,
            color=colours[bar.what],
            label=label,
            height=0.8,
            edgecolor="white",
            linewidth=0.3,
        )
        ranks = max(ranks, bar.rank + 1)
    axes.set_yticks(range(ranks), [str(rank) for rank in range(ranks)], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("seconds of a step (at most 16 micro-batches are drawn)")
    axes.set_ylabel("pipeline rank")
    axes.set_title(f"a step of {said.job.choice.words().replace(',', ' ')}", fontsize=9, loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7)


def curve_picture(curves: Mapping[str, Sequence[Point]], path: Path) -> None:
    """MFU, days, memory and cost over the number of devices, one line per model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    utilisation, days, memory, cost = figure.subplots(2, 2).flat
    for (name, points), colour in zip(curves.items(), (COLOURS[0], COLOURS[4], COLOURS[2], COLOURS[3]), strict=False):
        devices = [point.forecast.job.choice.gpus for point in points]
        utilisation.plot(devices, [100 * point.forecast.mfu for point in points], "o-", color=colour, label=name)
        utilisation.plot(devices, [100 * point.forecast.mfu * point.useful for point in points], "--", color=colour)
        days.plot(devices, [point.days for point in points], "o-", color=colour, label=name)
        memory.plot(devices, [point.forecast.memory_gib["total"] for point in points], "o-", color=colour, label=name)
        cost.plot(devices, [point.device_hours for point in points], "o-", color=colour, label=name)
    for axes, title in (
        (utilisation, "MFU, % (dashed: failures and checkpoints counted)"),
        (days, "days"),
        (memory, "GiB on the fullest rank"),
        (cost, "device-hours"),
    ):
        axes.set_xscale("log")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("devices")
        axes.grid(alpha=0.3)
    for axes in (days, cost):
        axes.set_yscale("log")
    utilisation.set_ylim(bottom=0)
    memory.set_ylim(bottom=0)
    utilisation.legend(fontsize=8)
    figure.savefig(path, dpi=130)
