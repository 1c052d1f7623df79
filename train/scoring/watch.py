"""How far a long evaluation has come: a bar on a terminal, else a line now and then, both on standard error."""

import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")

BAR_SECONDS = 2.0
"""work that takes no longer shows no bar"""
LINE_SECONDS = 30.0
"""between two lines, where there is no bar"""


class Watch:
    """Hands batches on and says how many are done. What comes in several parts is counted together."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._began = self._said = time.monotonic()
        self._done = 0

    def __call__(self, batches: Iterable[Item], count: int) -> Iterator[Item]:
        """The batches, of which there are `count`."""
        total = self._done + count
        columns = (TextColumn("evaluate"), MofNCompleteColumn(), TextColumn("batches"), BarColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=self._console, transient=True)
        task, started = bar.add_task("evaluate", total=total), False
        try:
            for batch in batches:
                if self._console.is_terminal and time.monotonic() - self._began > BAR_SECONDS:
                    if not started:
                        bar.start()
                        started = True
                    bar.update(task, completed=self._done)
                elif not self._console.is_terminal:
                    self._line(total)
                yield batch
                self._done += 1
        finally:
            if started:  # to stop one that never began writes an empty line
                bar.stop()

    def _line(self, total: int) -> None:
        now = time.monotonic()
        if not self._done or now - self._said < LINE_SECONDS:
            return
        self._said = now
        left = timedelta(seconds=round((now - self._began) / self._done * (total - self._done)))
        self._console.print(f"evaluate: {self._done:,} of {total:,} batches, {left} left", highlight=False, soft_wrap=True)
