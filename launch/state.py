"""What the folders of runs say of their state, read while others write them."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from scaling.record import EvaluationLine, StepLine, read_lines
from train.config import Config

_TAIL_BYTES = 64 * 1024


def run_folder(config: Config) -> Path:
    """The folder of a run."""
    return Path(config.run.dir).expanduser() / config.run.name


def status_of(run: Path) -> str | None:
    """The status in a run's record; None without a readable one."""
    try:
        plain = json.loads((run / "run.json").read_text(encoding="utf-8"))
        return str(plain["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def tail(path: Path) -> list[bytes]:
    """The last whole lines of a file, with their ends; none where there is no file."""
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL_BYTES))
            lines = stream.read().splitlines(keepends=True)
    except OSError:
        return []
    return lines[int(size > _TAIL_BYTES) :]


def last_lines_of(run: Path) -> list[StepLine | EvaluationLine]:
    """The last lines of a run's metrics that can be read."""
    return list(read_lines(tail(run / "metrics.jsonl"), "metrics.jsonl", []))


def last_line_of(run: Path) -> StepLine | None:
    """The line of a run's newest step."""
    return next((line for line in reversed(last_lines_of(run)) if isinstance(line, StepLine)), None)


def runs_below(folder: Path) -> Iterator[Path]:
    """The runs in a folder and in the folders in it, by name: it is one itself, or has them at most three levels down."""
    yield from _runs_below(folder, 3)


def _runs_below(folder: Path, levels: int) -> Iterator[Path]:
    if (folder / "run.json").is_file() or (folder / "config.yaml").is_file():
        yield folder
        return
    if levels == 0 or not folder.is_dir():
        return
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink() and entry.name != ".launch":
            yield from _runs_below(entry, levels - 1)
