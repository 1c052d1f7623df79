"""Reading runs: run directories, CSV, Parquet, JSON lines and offline wandb directories become one table, a row per run.

Columns are those of the run record (`scaling.record`), nested ones joined by underscores; `loss_<set>` and `error_<task>` are
its losses and errors. Columns that follow from others are added where they are missing (`DERIVED`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from common.errors import UserError
from common.plain import flatten
from scaling.record import read_record
from scaling.runs.columns import SOURCE, UNREADABLE, derive, listed, make_numeric
from scaling.runs.expression import ExpressionError, evaluate
from scaling.runs.offline_wandb import wandb_row


def read_runs(
    places: Sequence[str | Path], rename: Sequence[str] = (), roles: Mapping[str, str | None] | None = None
) -> pd.DataFrame:
    """All runs in files and directories, with renamed and derived columns.

    Args:
        places: run directories or folders of them, .csv, .tsv, .parquet, .jsonl files, offline wandb directories.
        rename: NEW=OLD; OLD is a column or an expression over columns, such as `tokens=tokens_billions*1e9`.
        roles: which column is the loss, the error, ..., as --loss, --error, ... say it; None: the one of that name.

    Raises:
        UserError: a place that does not exist, holds no runs or cannot be read; a column to rename that is missing.
    """
    frames = [_read(Path(place)) for place in places]
    frame = pd.concat(frames, ignore_index=True)
    if frame.empty:
        raise UserError(f"{', '.join(map(str, places))}: no runs in it")
    frame.columns = [str(column).strip() for column in frame.columns]
    renamed: set[str] = set()
    for word in rename:
        renamed.add(_rename(frame, word, renamed))
    for role, column in (roles or {}).items():
        if column is not None:
            _assign(frame, role, column, f"--{role} {column}")
    frame["name"] = _names(frame)
    return derive(make_numeric(frame))


def _names(frame: pd.DataFrame) -> pd.Series:
    """What rows are called: their `name`, another column that names runs, or their number."""
    numbers = pd.Series([f"row {number}" for number in range(1, len(frame) + 1)], index=frame.index)
    column = next((word for word in ("name", "run", "run_name", "run_id") if word in frame.columns), None)
    return numbers if column is None else frame[column].astype(str).where(frame[column].notna(), numbers)


def select(frame: pd.DataFrame, expression: str | None, option: str) -> pd.Series:
    """Which rows an expression (`scaling.runs.expression`) chooses; all where there is none.

    Raises:
        UserError: the expression cannot be evaluated, is neither true nor false of a row, or chooses none.
    """
    if expression is None:
        return pd.Series(True, index=frame.index)
    try:
        chosen = evaluate(expression, frame)
        if not isinstance(chosen, pd.Series) or chosen.dtype != bool:
            raise ExpressionError("it is neither true nor false of a run; compare something, such as parameters < 1e9")
    except ExpressionError as problem:
        raise UserError(f"{option} {expression!r}: {problem}\ncolumns: {listed(frame.columns)}") from None
    if not chosen.any():
        raise UserError(f"{option} {expression!r} chooses none of {len(frame)} runs")
    return chosen


def _rename(frame: pd.DataFrame, word: str, before: set[str]) -> str:
    new, equals, old = (part.strip() for part in word.partition("="))
    if not equals or not new.isidentifier() or not old:
        raise UserError(f"--rename {word!r} is not NEW=OLD with a word for NEW, such as --rename loss=val_loss")
    if new in before:
        raise UserError(f"--rename {word}: {new} has been renamed already; leave one out")
    _assign(frame, new, old, f"--rename {word}")
    return new


def _assign(frame: pd.DataFrame, new: str, old: str, option: str) -> None:
    """Make a column from another, or from an expression."""
    if old in frame.columns:
        frame[new] = frame[old]
        for kind in ("not_numbers", "texts"):
            known = frame.attrs.get(kind, {})
            frame.attrs[kind] = known | ({new: known[old]} if old in known else {})
        return
    try:
        frame[new] = evaluate(old, make_numeric(frame))
    except ExpressionError as problem:
        raise UserError(f"{option}: {problem}\ncolumns: {listed(frame.columns)}") from None


def _read(place: Path) -> pd.DataFrame:
    if not place.exists():
        raise UserError(f"{place}: no such file or directory")
    frame = _read_directory(place) if place.is_dir() else _read_file(place)
    frame[SOURCE] = frame[SOURCE] if SOURCE in frame.columns else str(place)
    return frame


def _read_file(path: Path) -> pd.DataFrame:
    kind = path.suffix.lower()
    try:
        if kind in (".csv", ".tsv"):
            frame = pd.read_csv(path, sep="\t" if kind == ".tsv" else ",", skipinitialspace=True)
            if frame.shape[1] == 1 and (sign := next((sign for sign in ";\t|," if sign in str(frame.columns[0])), None)):
                raise ValueError(f"its columns are separated by {sign!r}; a .csv has commas, a .tsv tabs")
            return frame
        if kind == ".parquet":
            return pd.read_parquet(path)
        if kind in (".jsonl", ".ndjson"):
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is not a JSON object")
            return pd.DataFrame([flatten(row, "_") for row in rows])
    except (ValueError, OSError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as {kind[1:]}: {str(error).splitlines()[0]}") from None
    raise UserError(f"{path}: runs come as .csv, .tsv, .parquet, .jsonl, run directories or offline wandb directories")


def _read_directory(folder: Path) -> pd.DataFrame:
    rows = [_readable(partial(_record_row, path.parent), path.parent) for path in _within(folder, "run.json")]
    wandb = sorted({path.resolve() for path in _within(folder, "*.wandb")})  # wandb links to its latest run
    rows += [_readable(partial(wandb_row, path), path.parent) for path in wandb]
    if rows and all(UNREADABLE in row for row in rows):
        raise UserError(str(rows[0][UNREADABLE]))
    if not rows:
        raise UserError(
            f"{folder}: neither a run directory (run.json) nor an offline wandb directory (*.wandb), nor a folder of them"
        )
    return pd.DataFrame(rows)


def _within(folder: Path, pattern: str) -> list[Path]:
    """Files in a folder, its folders and theirs: runs/, runs/ladder/a/, not what a checkpoint or a hidden folder holds."""
    found = {path for depth in ("", "*/", "*/*/") for path in folder.glob(depth + pattern) if path.is_file()}
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _readable(read: Callable[[], dict[str, Any]], folder: Path) -> dict[str, Any]:
    """The row of a run; one that says what is wrong if its record is damaged, which concerns no other run."""
    try:
        return read()
    except (ValueError, OSError, AttributeError, TypeError) as error:
        problem = str(error).splitlines()[0]
        named = problem if str(folder) in problem else f"{folder}: {problem}"
        return {"name": folder.name, UNREADABLE: named, SOURCE: str(folder)}


def _record_row(folder: Path) -> dict[str, Any]:
    try:
        record = read_record(folder)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None
    row = {key: value for key, value in vars(record).items() if key not in ("losses", "errors")}
    row |= {f"loss_{name}": value for name, value in record.losses.items()}
    row |= {f"error_{name}": value for name, value in record.errors.items()}
    return flatten(row, "_") | {SOURCE: str(folder)}
