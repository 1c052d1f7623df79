"""Runs in: run directories, CSV, Parquet, JSON lines and offline wandb directories become one table, a row per run.

Columns are those of the run record (`scaling.record`), nested ones joined by underscores; `loss_<set>` and `error_<task>` are
its losses and errors. Columns that follow from others are added where they are missing (`DERIVED`).
"""

import difflib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import UserError
from scaling.expression import ExpressionError, evaluate
from scaling.record import STATUSES, read_record

SOURCE = "source"
"""Column that says which file or directory a row comes from."""

# Column -> (what it follows from, how). Nothing that is there is replaced.
DERIVED: tuple[tuple[str, tuple[str, ...], Callable[..., Any]], ...] = (
    ("tokens", ("fp_tokens", "qat_tokens"), lambda fp, qat: fp + qat),
    ("tokens", ("tokens_per_parameter", "parameters"), lambda ratio, size: ratio * size),
    ("tokens", ("flops", "parameters"), lambda flops, size: flops / (6.0 * size)),
    ("parameters", ("flops", "tokens"), lambda flops, tokens: flops / (6.0 * tokens)),
    ("parameters", ("flops", "tokens_per_parameter"), lambda flops, ratio: (flops / (6.0 * ratio)) ** 0.5),
    ("tokens", ("flops", "tokens_per_parameter"), lambda flops, ratio: (flops * ratio / 6.0) ** 0.5),
    ("flops", ("parameters", "tokens"), lambda size, tokens: 6.0 * size * tokens),
    ("tokens_per_parameter", ("tokens", "parameters"), lambda tokens, size: tokens / size),
    ("qat_fraction", ("qat_tokens", "tokens"), lambda qat, tokens: qat / tokens),
    ("qat_tokens", ("qat_fraction", "tokens"), lambda fraction, tokens: fraction * tokens),
    ("fp_tokens", ("tokens", "qat_tokens"), lambda tokens, qat: tokens - qat),
    ("batch_tokens", ("batch_sequences", "sequence"), lambda batch, sequence: batch * sequence),
)

# What to ask for where a column is missing that nobody writes down.
FOLLOWS_FROM = {
    "flops": ("parameters", "tokens"),
    "tokens_per_parameter": ("parameters", "tokens"),
    "qat_tokens": ("qat_fraction", "tokens"),
    "fp_tokens": ("qat_fraction", "tokens"),
}

# What other people call our columns: only to guess what to type, never to guess what a column means.
OTHER_NAMES = {
    "parameters": (
        "n",
        "params",
        "n_params",
        "num_params",
        "parameter_count",
        "model_size",
        "size",
        "num_parameters",
        "n_parameters",
    ),
    "tokens": ("d", "n_tokens", "num_tokens", "train_tokens", "tokens_seen", "training_tokens", "total_tokens"),
    "flops": ("c", "compute", "training_flops", "training_flop", "total_flops", "flop"),
    "loss": (
        "val_loss",
        "validation_loss",
        "eval_loss",
        "eval/loss",
        "val/loss",
        "test_loss",
        "final_loss",
        "valid_loss",
        "train_loss",
    ),
    "error": ("err", "error_rate", "downstream_error", "top1_error", "mean_error"),
    "bits": ("bit_width", "wbits", "w_bits", "weight_bits", "precision_bits", "b"),
    "qat_fraction": ("f", "fraction", "f_qat", "qat_frac", "qat_ratio"),
    "peak_learning_rate": ("lr", "learning_rate", "peak_lr", "max_lr", "eta"),
    "batch_tokens": ("batch_size", "tokens_per_batch", "global_batch_tokens", "batch"),
}


def read_runs(
    places: Sequence[str | Path], rename: Sequence[str] = (), roles: Mapping[str, str | None] | None = None
) -> pd.DataFrame:
    """All runs found in files and directories, with renamed and derived columns.

    Args:
        places: run directories or folders of them, .csv, .tsv, .parquet, .jsonl files, offline wandb directories.
        rename: NEW=OLD; OLD is a column or an expression over columns, such as `tokens=tokens_billions*1e9`.
        roles: which column is the loss, the error, ..., as --loss, --error, ... say it; None: the one of that name.

    Raises:
        UserError: a place that is not there, holds no runs or cannot be read; a column to rename that is not there.
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
    if "name" not in frame.columns:
        frame["name"] = [f"row {number}" for number in range(1, len(frame) + 1)]
    frame["name"] = frame["name"].astype(str)
    return derive(make_numeric(frame))


_NUMBERS = {word for column, sources, _ in DERIVED for word in (column, *sources)}
"""Columns that can only be numbers, because others follow from them."""


def make_numeric(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of numbers, or mostly of numbers, become numeric; what was none is kept in `frame.attrs["not_numbers"]`."""
    odd: dict[str, dict[Any, str]] = dict(frame.attrs.get("not_numbers", {}))
    for column in frame.columns:
        values = frame[column]
        if column in ("name", SOURCE) or pd.api.types.is_numeric_dtype(values):
            continue
        numbers = pd.to_numeric(values, errors="coerce")
        wrong = numbers.isna() & values.notna() & (values.astype(str).str.strip() != "")
        if column in _NUMBERS or numbers.notna().sum() >= max(1, wrong.sum()):
            odd[str(column)] = {index: str(values[index]) for index in frame.index[wrong]}
            frame[column] = numbers
    frame.attrs["not_numbers"] = odd
    return frame


def derive(frame: pd.DataFrame) -> pd.DataFrame:
    """Add what follows from other columns (twice, because one may follow from another that did)."""
    if "error" not in frame.columns:
        errors = [column for column in frame.columns if str(column).startswith("error_") and SOURCE_ERRORS in frame.columns]
        if errors:
            frame["error"] = frame[errors].mean(axis=1)
    for _, (column, sources, how) in itertools.product(range(2), DERIVED):
        if not all(source in frame.columns and pd.api.types.is_numeric_dtype(frame[source]) for source in sources):
            continue
        with np.errstate(all="ignore"):
            values = how(*(frame[source] for source in sources))
        if column not in frame.columns:
            frame[column] = values
        elif pd.api.types.is_numeric_dtype(frame[column]):
            known = frame.attrs.get("not_numbers", {}).get(column, {})
            frame[column] = frame[column].where(frame[column].notna() | frame.index.isin(list(known)), values)
    return frame


SOURCE_ERRORS = "config_hash"
"""A column that only run records have: their `error_<task>` columns are the tasks of one run, and `error` is their mean."""


def select(frame: pd.DataFrame, expression: str | None, option: str) -> pd.Series:
    """Which rows an expression (`scaling.expression`) chooses; all where there is none.

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
        raise UserError(f"{option} {expression!r}: {problem}\ncolumns: {_listed(frame.columns)}") from None
    if not chosen.any():
        raise UserError(f"{option} {expression!r} chooses none of {len(frame)} runs")
    return chosen


def missing_columns(frame: pd.DataFrame, needed: Iterable[str], who: str, places: Sequence[str | Path]) -> None:
    """Refuse a table without the columns that a law needs, and say what to type.

    Raises:
        UserError: a needed column is not there.
    """
    missing = [column for column in needed if column not in frame.columns]
    if not missing:
        return
    wanted = dict.fromkeys(
        word for column in missing for word in FOLLOWS_FROM.get(column, (column,)) if word not in frame.columns
    )
    hints = [f"--rename {column}={guess[0]}" for column in wanted if len(guess := _guesses(column, frame.columns)) == 1]
    several = [
        f"{column} may be one of {', '.join(guess[:8])}: --rename {column}=..."
        for column in wanted
        if len(guess := _guesses(column, frame.columns)) > 1
    ]
    names = " and ".join(repr(column) for column in missing)
    plural = "s" * (len(missing) > 1)
    if not hints and not several:
        hints = [f"--rename {column}=COLUMN" for column in wanted]
    typed = f"type {' '.join(hints)} (OLD may be an expression: tokens=billions*1e9)" if hints else ""
    raise UserError(
        "\n".join(
            line
            for line in (
                f"{', '.join(map(str, places))}: no column{plural} {names}, which {who} needs",
                f"columns there: {_listed(frame.columns)}",
                "; ".join(several),
                typed,
            )
            if line
        )
    )


def _guesses(column: str, there: Iterable[str]) -> list[str]:
    """What may be meant by a column that is missing: another name for it, one that has its name as a word, one like it."""
    known = {str(name).lower(): str(name) for name in there if name not in (SOURCE, *OTHER_NAMES, *_NUMBERS)}
    others = OTHER_NAMES.get(column, ())
    for other in others:
        if other in known:
            return [known[other]]
    wanted = {column, *(other for other in others if len(other) > 2)}
    parts = [known[name] for name in known if wanted & set(re.split(r"\W|_", name))]
    near = difflib.get_close_matches(column, list(known), n=1, cutoff=0.6)
    return parts or [known[name] for name in near]


def _listed(columns: Iterable[str], limit: int = 24) -> str:
    names = [str(column) for column in columns if column != SOURCE]
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def _rename(frame: pd.DataFrame, word: str, before: set[str]) -> str:
    new, equals, old = (part.strip() for part in word.partition("="))
    if not equals or not new.isidentifier() or not old:
        raise UserError(f"--rename {word!r} is not NEW=OLD with a word for NEW, such as --rename loss=val_loss")
    if new in before:
        raise UserError(f"--rename {word}: {new} has been renamed already; leave one out")
    _assign(frame, new, old, f"--rename {word}")
    return new


def _assign(frame: pd.DataFrame, new: str, old: str, said: str) -> None:
    """Make a column from another, or from an expression."""
    if old in frame.columns:
        frame[new] = frame[old]
        odd = frame.attrs.get("not_numbers", {})
        frame.attrs["not_numbers"] = odd | ({new: odd[old]} if old in odd else {})
        return
    try:
        frame[new] = evaluate(old, make_numeric(frame))
    except ExpressionError as problem:
        raise UserError(f"{said}: {problem}\ncolumns there: {_listed(frame.columns)}") from None


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
            return pd.DataFrame([flatten(row) for row in rows])
    except (ValueError, OSError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as {kind[1:]}: {str(error).splitlines()[0]}") from None
    raise UserError(f"{path}: runs come as .csv, .tsv, .parquet, .jsonl, run directories or offline wandb directories")


def _read_directory(folder: Path) -> pd.DataFrame:
    rows = [_record_row(path.parent) for path in _within(folder, "run.json")]
    wandb = sorted({path.resolve() for path in _within(folder, "*.wandb")})  # wandb links to its latest run
    if wandb:
        from scaling.wandb_runs import wandb_row

        rows += [wandb_row(path) for path in wandb]
    if not rows:
        raise UserError(
            f"{folder}: neither a run directory (run.json) nor an offline wandb directory (*.wandb), nor a folder of them"
        )
    return pd.DataFrame(rows)


def _within(folder: Path, pattern: str) -> list[Path]:
    """Files in a folder, its folders and theirs: runs/, runs/ladder/a/, not what a checkpoint holds."""
    return sorted({path for depth in ("", "*/", "*/*/") for path in folder.glob(depth + pattern) if path.is_file()})


def _record_row(folder: Path) -> dict[str, Any]:
    try:
        record = read_record(folder)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None
    row = {key: value for key, value in vars(record).items() if key not in ("losses", "errors")}
    row |= {f"loss_{name}": value for name, value in record.losses.items()}
    row |= {f"error_{name}": value for name, value in record.errors.items()}
    return flatten(row) | {SOURCE: str(folder)}


def flatten(row: Any, before: str = "") -> dict[str, Any]:
    """{"model": {"num_layers": 2}} becomes {"model_num_layers": 2}."""
    if not isinstance(row, dict):
        raise ValueError("a line is not a JSON object")
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{before}{key}_")
        else:
            flat[f"{before}{key}"] = value
    return flat


def unfinished(frame: pd.DataFrame) -> pd.Series:
    """Which rows say that their run has not finished."""
    if "status" not in frame.columns:
        return pd.Series(False, index=frame.index)
    return frame["status"].isin([status for status in STATUSES if status != "finished"])
