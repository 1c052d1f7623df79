"""Progress bars, on a terminal only."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from train.data.readers import Advance

if TYPE_CHECKING:
    from rich.progress import Progress

Stage = Callable[[str, int], Advance]
"""Starts a stage of (name, total bytes). Call the result with the number of bytes done since the last call."""


@contextmanager
def shown(wanted: bool) -> Iterator[Stage]:
    """Stages with bars on standard error if `wanted` and standard error is a terminal, else silent stages."""
    if not (wanted and sys.stderr.isatty()):
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<20}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield lambda name, total: _advance(progress, name, total)


def _silent(name: str, total: int) -> Advance:
    return lambda count: None


def _advance(progress: "Progress", name: str, total: int) -> Advance:
    task = progress.add_task(name, total=total)
    return lambda count: progress.advance(task, count)
