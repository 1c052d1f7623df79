"""`foretrain schedule [overrides]`: draw a run's learning rate and batch size, and list its phases with their numbers."""

import itertools
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from common.errors import UserError
from parallel.environment import leave
from schedulers.schedule import PowerLaw, Schedule
from train.command.frame import run_command
from train.config import Config, load_config, require, schedule_of
from train.config.resolve.quantization import low_precision_phase
from train.config.resolve.schedule import warnings_of

WIDTH, HEIGHT = 72, 10  # characters of the drawing in the terminal
_EIGHTHS = " ▁▂▃▄▅▆▇█"


def schedule(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="what you would type after foretrain train: schedule=power train.tokens=1e9 ...")
    ] = None,
    out: Annotated[Path, typer.Option(help="the picture to write")] = Path("schedule.png"),
) -> None:
    """Draw the learning-rate schedule of a run, as a picture and in the terminal, with its phases."""
    config = load_config(overrides or [])
    require(config, world_size=config.parallel.layout.world_size, overrides=overrides or [])
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file in it, such as {out / 'schedule.png'}")
    out = out if out.suffix else out.with_suffix(".png")  # as matplotlib names it
    try:
        _draw(config, out)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write --out {out}: {getattr(error, 'strerror', None) or error}") from None
    _show(config)
    print(f"picture: {out}")


def phases(config: Config) -> list[tuple[str, int, int]]:
    """(name, first, last) of every phase, in tokens. The trunk of a power law is two phases: before and after its bend."""
    rate, total = schedule_of(config), config.total_tokens
    borders = {0, total, min(rate.warmup_tokens, total), *(border for decay in rate.decays for border in decay)}
    trunk = rate.trunk
    if isinstance(trunk, PowerLaw) and trunk.bend < total and rate.phase(bend := int(trunk.bend)) == "stable":
        borders.add(bend)
    start = total
    if (phase := low_precision_phase(config)) is not None:
        start = phase.start
        borders |= {start, *rate.borders()}
        if rate.then is not None:
            borders.add(start + rate.then[1].warmup_tokens)
    state = f", {config.low_precision.state}" if config.low_precision is not None else ""
    return [
        (_name(rate, first, last) + (state if first >= start else ""), first, last)
        for first, last in itertools.pairwise(sorted(borders))
    ]


def _name(schedule: Schedule, first: int, last: int) -> str:
    phase = schedule.phase(last if schedule.phase(last) == "decay" else first + 1)
    if phase == "stable" and not math.isclose(schedule.trunk(first + 1), schedule.trunk(last), rel_tol=1e-6):
        return "power law"
    return phase


def _show(config: Config) -> None:
    from rich.console import Console
    from rich.table import Table

    rate, total, batches = schedule_of(config), config.total_tokens, config.batches
    print(_in_characters([rate.learning_rate(round(total * (column + 1) / WIDTH)) for column in range(WIDTH)]))
    print(f"0{f'{total:,} tokens':>{WIDTH + 9}}")
    title = f"{config.schedule.name}: {config.steps:,} step{'' if config.steps == 1 else 's'}"
    table = Table("phase", *("from", "to", "tokens", "first rate", "last rate"), title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, first, last in phases(config):
        rates = (f"{rate:.6g}" for rate in (_rate_from(rate, first), rate.learning_rate(last)))
        table.add_row(name, f"{first:,}", f"{last:,}", f"{last - first:,}", *rates)
    Console(width=100).print(table)
    if (phase := low_precision_phase(config)) is not None and config.low_precision is not None:
        print(f"{config.low_precision.state} from {phase.start:,} tokens on ({phase.why})")
    for warning in warnings_of(config):
        print(f"warning: {warning}")
    if len(batches.stages) > 1:
        full = batches.stages[-1]
        reached = f"{full.batch_tokens:,} from {full.tokens:,} on"
        if full.tokens >= total:
            grown = batches.batch_before(total)
            reached = f"{grown:,} at the end, not {full.batch_tokens:,}: train.batch_warmup_tokens is longer than the run"
        print(f"batch: {batches.stages[0].batch_tokens:,} tokens, {reached}")


def _rate_from(schedule: Schedule, first: int) -> float:
    """The rate at the start of a phase; after the jump if it jumps there."""
    if schedule.then is not None and first >= schedule.then[0]:
        return _rate_from(schedule.then[1], first - schedule.then[0])
    return schedule.trunk(first) if schedule.phase(first + 1) != "warmup" else schedule.learning_rate(first)


def _in_characters(rates: list[float]) -> str:
    """A bar chart of the rates; the largest fills the height."""
    highest = max(rates) or 1.0
    try:
        _EIGHTHS.encode(sys.stdout.encoding or "utf-8")
        blocks = _EIGHTHS
    except UnicodeEncodeError:
        blocks = "    #####"
    lines = []
    for row in reversed(range(HEIGHT)):
        eighths = [min(8, max(0, round(rate / highest * HEIGHT * 8) - 8 * row)) for rate in rates]
        label = f"{highest:8.2g} " if row == HEIGHT - 1 else f"{0:8} " if row == 0 else " " * 9
        lines.append(label + "".join(blocks[number] for number in eighths).rstrip())
    return "\n".join(lines)


def _draw(config: Config, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    schedule, total = schedule_of(config), config.total_tokens
    # Both sides of every border, so that corners and jumps are drawn exactly.
    points = {round(total * index / 2000) for index in range(2001)}
    points |= {border + side for _, first, last in phases(config) for border in (first, last) for side in (0, 1)}
    tokens = sorted(point for point in points if 0 <= point <= total)
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    rates = [schedule.learning_rate(point) for point in tokens]
    axes.plot(tokens, rates, color="black", linewidth=1.5)
    title = f"{config.schedule.name}: {total:,} tokens in {config.steps:,} steps"
    axes.set(xlabel="tokens", ylabel="learning rate", title=title, xlim=(0, total))
    axes.set_ylim(0, 1.6 * max(rates))  # room above the curve for the names of the phases
    for number, (name, first, last) in enumerate(phases(config)):
        axes.axvspan(first, last, color="0.93" if number % 2 else "1.0", zorder=0)
        rotation = 90 if (last - first) / total < 0.1 else 0
        # A phase that is narrower than its name: the name stands beside the axes, not on them.
        middle, in_axes = (
            min(max((first + last) / 2, 0.025 * total), 0.975 * total),
            axes.get_xaxis_transform(),
        )  # y as a share of the axes' height
        axes.text(middle, 0.98, name, rotation=rotation, ha="center", va="top", transform=in_axes)
    if len(config.batches.stages) > 1:
        twin = axes.twinx()
        twin.step(tokens, [config.batches.batch_after(point) for point in tokens], where="post", color="0.4", linestyle="--")
        twin.set(ylabel="tokens in a batch (dashed)", ylim=(0, 1.8 * config.train.batch_tokens))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: list[str]) -> int:
    """Parse the command line and draw. Returns the exit code."""
    return run_command(schedule, arguments)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
