"""A long evaluation says how far it is; a short one says nothing."""

import io

import pytest
from rich.console import Console

from train.scoring import watch
from train.scoring.watch import Watch


def shown(terminal: bool) -> str:
    screen = io.StringIO()
    show = Watch(Console(file=screen, force_terminal=terminal, width=100))
    assert list(show(iter("abc"), 3)) == ["a", "b", "c"]
    assert list(show(iter("de"), 2)) == ["d", "e"]
    return screen.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_short_work_is_silent(monkeypatch, terminal):
    monkeypatch.setattr(watch, "BAR_SECONDS", 1e9)
    monkeypatch.setattr(watch, "LINE_SECONDS", 1e9)
    assert shown(terminal) == ""


def test_a_line_where_nobody_watches(monkeypatch):
    monkeypatch.setattr(watch, "LINE_SECONDS", 0.0)
    lines = shown(terminal=False).splitlines()
    assert [line.split(" batches")[0] for line in lines] == [
        "evaluate: 1 of 3", "evaluate: 2 of 3", "evaluate: 3 of 5", "evaluate: 4 of 5"
    ]  # fmt: skip
    assert all(line.endswith(" left") for line in lines)


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(watch, "BAR_SECONDS", -1.0)
    assert "evaluate" in shown(terminal=True)
