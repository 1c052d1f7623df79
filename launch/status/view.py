"""The state of runs, read from their folders."""

import json
import os
import socket
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from launch.state import last_lines_of, runs_below, tail
from scaling.record import StepLine
from train.config import parse_config, with_defaults

LEAST_SECONDS = 60.0
"""A pause shorter than this is never called stuck: evaluations, checkpoints and starts take their time."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One run as it is now. None: not known."""

    name: str
    folder: str
    state: str
    """finished, preempted, failed, running; stuck: running without a step for long; dead: its process is gone"""
    step: int | None
    tokens: int | None
    total_tokens: int | None
    loss: float | None
    """of the newest step; the validation loss of a finished run"""
    tokens_per_second: float | None
    seconds_left: float | None
    seconds_since_step: float | None
    message: str
    """the last line of its log"""

    @property
    def progress(self) -> float | None:
        """Share of its tokens that is done."""
        return None if not self.total_tokens or self.tokens is None else min(1.0, self.tokens / self.total_tokens)


def views(folder: Path, stuck_factor: float) -> list[View]:
    """Every run in a folder and the folders in it.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; type the folder of runs, such as foretrain launch status runs")
    found = [view_of(run, stuck_factor) for run in runs_below(folder)]
    if not found:
        raise UserError(f"{folder}: no runs in it, nor in the folders in it")
    return found


def view_of(run: Path, stuck_factor: float, now: float | None = None) -> View:
    """The state of one run. It is stuck when no step has come for `stuck_factor` times its usual step time."""
    now = time.time() if now is None else now
    record = _json(run / "run.json")
    lines = [line for line in last_lines_of(run) if isinstance(line, StepLine)]
    last = lines[-1] if lines else None
    usual = statistics.median([line.step_seconds for line in lines if line.step_seconds] or [0.0])
    quiet = _seconds_since(run / "metrics.jsonl", now)
    state = str(record.get("status", "unreadable"))
    total = _total_tokens(run)
    tokens = last.tokens if last is not None else _number(record.get("tokens"))
    speed = _number(record.get("tokens_per_second")) if last is None or state == "finished" else last.tokens_per_second
    if state == "running":
        if _holder_is_gone(run):
            state = "dead"
        elif quiet is not None and quiet > max(LEAST_SECONDS, stuck_factor * usual):
            state = "stuck"
    left = None
    if state in ("running", "stuck") and total and tokens is not None and speed:
        left = max(0.0, total - tokens) / speed
    loss = record.get("loss") if state == "finished" else last.loss if last is not None else None
    return View(
        name=str(record.get("name", run.name)),
        folder=str(run),
        state=state,
        step=None if last is None else last.step,
        tokens=None if tokens is None else int(tokens),
        total_tokens=total,
        loss=_number(loss),
        tokens_per_second=speed,
        seconds_left=left,
        seconds_since_step=quiet if state in ("running", "stuck", "dead") else None,
        message=_message(run),
    )


def curve(run: Path, most: int = 400) -> Iterator[tuple[int, float]]:
    """Points (tokens, loss) of a run, thinned to about `most`: means of equal numbers of steps."""
    points = []
    with open(run / "metrics.jsonl", "rb") as stream:
        for text in stream:
            try:
                line = json.loads(text)
                if "learning_rate" in line and line["loss"] is not None:
                    points.append((int(line["tokens"]), float(line["loss"])))
            except (ValueError, KeyError, TypeError):
                continue
    size = max(1, len(points) // most)
    for first in range(0, len(points), size):
        part = points[first : first + size]
        yield part[-1][0], statistics.fmean(loss for _, loss in part)


def _json(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return plain if isinstance(plain, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) else None


def _seconds_since(path: Path, now: float) -> float | None:
    try:
        return max(0.0, now - path.stat().st_mtime)
    except OSError:
        return None


_TOTALS: dict[tuple[str, int], int | None] = {}


def _total_tokens(run: Path) -> int | None:
    """Tokens that a run is to have. Its configuration is read once, for that takes a while."""
    path = run / "config.yaml"
    try:
        key = (str(path), path.stat().st_mtime_ns)
    except OSError:
        return None
    if key not in _TOTALS:
        try:
            _TOTALS[key] = parse_config(with_defaults(yaml.safe_load(path.read_text(encoding="utf-8")))).total_tokens
        except (OSError, ValueError, yaml.YAMLError, AttributeError, TypeError):
            _TOTALS[key] = None
    return _TOTALS[key]


def _holder_is_gone(run: Path) -> bool:
    """Whether the process that wrote a run was one of this machine and is no more."""
    holder = _json(run / ".lock")
    return holder.get("host") == socket.gethostname() and not os.path.exists(f"/proc/{holder.get('process')}")


def _message(run: Path) -> str:
    lines = [line.decode("utf-8", errors="replace").strip() for line in tail(run / "logs" / "rank_0000.log")]
    said = [line for line in lines if line]
    return "".join(character for character in (said[-1] if said else "")[:300] if character.isprintable())
