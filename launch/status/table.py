"""The state of runs on a terminal, and as JSON."""

import dataclasses
import json
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from launch.status.view import View, views

_COLOURS = {"finished": "green", "running": "cyan", "preempted": "yellow", "failed": "red", "stuck": "red", "dead": "red"}
_REFRESH_SECONDS = 2.0


def as_json(found: Sequence[View]) -> str:
    """The object of `--json`."""
    runs = [dataclasses.asdict(view) | {"progress": view.progress} for view in found]
    states = [view.state for view in found]
    counts = {state: states.count(state) for state in sorted(set(states))}
    return json.dumps({"runs": runs, "states": counts}, indent=2)


def watch(folder: Path, stuck_factor: float, *, live: bool) -> None:
    """Print the table; if `live`, again and again until nothing runs, or Ctrl-C."""
    console = Console()
    found = views(folder, stuck_factor)
    if not live or not console.is_terminal:
        console.print(table(found))
        return
    with Live(table(found), console=console, auto_refresh=False) as screen:
        while any(view.state in ("running", "stuck") for view in found):
            time.sleep(_REFRESH_SECONDS)
            found = views(folder, stuck_factor)
            screen.update(table(found), refresh=True)


def table(found: Sequence[View]) -> Table:
    """The runs, a line each."""
    states = [view.state for view in found]
    title = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    shown = Table(title=title, title_style="bold", expand=True)
    for column in ("run", "state"):
        shown.add_column(column, overflow="fold", min_width=9)
    for column in ("done", "step", "loss", "tokens/s", "left"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("last message", overflow="ellipsis", no_wrap=True, ratio=1)
    for view in found:
        colour = _COLOURS.get(view.state, "red")
        shown.add_row(
            view.name,
            f"[{colour}]{state_words(view)}[/]",
            *cells(view),
            view.message.replace("[", "\\["),
        )
    return shown


def state_words(view: View) -> str:
    """The state, and for how long nothing has come where that matters."""
    if view.state in ("stuck", "dead") and view.seconds_since_step is not None:
        return f"{view.state}, no step for {timedelta(seconds=round(view.seconds_since_step))}"
    return view.state


def cells(view: View) -> tuple[str, str, str, str, str]:
    """Progress, step, loss, speed and time left, in words."""
    return (
        "" if view.progress is None else f"{100 * view.progress:.0f} %",
        "" if view.step is None else f"{view.step:,}",
        "" if view.loss is None else f"{view.loss:.4f}",
        "" if view.tokens_per_second is None else f"{view.tokens_per_second:,.0f}",
        "" if view.seconds_left is None else str(timedelta(seconds=round(view.seconds_left))),
    )
