"""Runs in: run directories, CSV, Parquet, JSON lines and offline wandb directories become one table, a row per run.

Columns are those of the run record (`scaling.record`), nested ones joined by underscores; `loss_<set>` and `error_<task>` are
its losses and errors. Columns that follow from others are added where they are missing (`DERIVED`).
"""

import difflib
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scaling.errors import UserError
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


def read_runs(places: Sequence[str | Path], rename: Sequence[str] = ()) -> pd.DataFrame:
    """All runs found in files and directories, with renamed and derived columns.

    Args:
        places: run directories or folders of them, .csv, .tsv, .parquet, .jsonl files, offline wandb directories.
        rename: NEW=OLD; OLD is a column or an expression over columns, such as `tokens=tokens_billions*1e9`.

    Raises:
        UserError: a place that is not there, holds no runs or cannot be read; a column to rename that is not there.
    """
    frames = [_read(Path(place)) for place in places]
    frame = pd.concat(frames, ignore_index=True)
    if frame.empty:
        raise UserError(f"{', '.join(map(str, places))}: no runs in it")
    frame.columns = [str(column).strip() for column in frame.columns]
    for word in rename:
        _rename(frame, word)
    if "name" not in frame.columns:
        frame["name"] = [f"row {number}" for number in range(1, len(frame) + 1)]
    frame["name"] = frame["name"].astype(str)
    return derive(make_numeric(frame))


def make_numeric(frame: pd.DataFrame) -> pd.DataFrame:
    """Text columns mostly of numbers become numbers; what was none is kept in `frame.attrs["not_numbers"]`."""
    odd: dict[str, dict[Any, str]] = {}
    for column in frame.columns:
        values = frame[column]
        if column in ("name", SOURCE) or pd.api.types.is_numeric_dtype(values):
            continue
        numbers = pd.to_numeric(values, errors="coerce")
        wrong = numbers.isna() & values.notna() & (values.astype(str).str.strip() != "")
        if numbers.notna().sum() >= max(1, wrong.sum()):
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
    for (column, sources, how), _ in itertools.product(DERIVED, range(2)):
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
    """Which rows a pandas query chooses; all where there is none.

    Raises:
        UserError: the query cannot be evaluated.
    """
    if expression is None:
        return pd.Series(True, index=frame.index)
    try:
        chosen = frame.query(expression, engine="python")
    except Exception as error:  # pandas raises whatever Python does
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{option} {expression!r} is no query over these runs: {said}\ncolumns: {_listed(frame.columns)}"
        ) from None
    return pd.Series(frame.index.isin(chosen.index), index=frame.index)


def missing_columns(frame: pd.DataFrame, needed: Iterable[str], who: str, places: Sequence[str | Path]) -> None:
    """Refuse a table without the columns that a law needs, and say what to type.

    Raises:
        UserError: a needed column is not there.
    """
    missing = [column for column in needed if column not in frame.columns]
    if not missing:
        return
    wanted = [word for column in missing for word in FOLLOWS_FROM.get(column, (column,)) if word not in frame.columns]
    hints = [f"--rename {column}={guess}" for column in dict.fromkeys(wanted) if (guess := _guess(column, frame.columns))]
    names = " and ".join(repr(column) for column in missing)
    plural = "s" * (len(missing) > 1)
    raise UserError(
        f"{', '.join(map(str, places))}: no column{plural} {names}, which {who} needs\n"
        f"columns there: {_listed(frame.columns)}\n"
        f"type {' '.join(hints) if hints else f'--rename {missing[0]}=COLUMN'} (OLD may be an expression: tokens=billions*1e9)"
    )


def _guess(column: str, there: Iterable[str]) -> str | None:
    known = {str(name).lower(): str(name) for name in there if name != SOURCE}
    for other in OTHER_NAMES.get(column, ()):
        if other in known:
            return known[other]
    near = difflib.get_close_matches(column, list(known), n=1, cutoff=0.6)
    return known[near[0]] if near else None


def _listed(columns: Iterable[str], limit: int = 24) -> str:
    names = [str(column) for column in columns if column != SOURCE]
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def _rename(frame: pd.DataFrame, word: str) -> None:
    new, equals, old = word.partition("=")
    new, old = new.strip(), old.strip()
    if not equals or not new or not old:
        raise UserError(f"--rename {word!r} is not NEW=OLD, such as --rename loss=val_loss")
    if old in frame.columns:
        frame[new] = frame[old]
        return
    try:
        frame[new] = frame.eval(old, engine="python")
    except Exception:  # pandas raises whatever Python does
        near = difflib.get_close_matches(old, [str(column) for column in frame.columns], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"--rename {word}: no column {old!r}{hint}\ncolumns there: {_listed(frame.columns)}") from None


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
            return pd.read_csv(path, sep="\t" if kind == ".tsv" else ",", skipinitialspace=True)
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
