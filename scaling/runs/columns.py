"""The columns of a table of runs: which follow from others, which are missing, what else they are called."""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import UserError
from common.words import nearest
from scaling.laws.base.columns import FULL_BITS

SOURCE = "source"
"""Column that says which file or directory a row comes from."""
UNREADABLE = "unreadable"
"""Column that says why the record of a run could not be read. Such a run is left out."""

# Column -> (what it follows from, how). A column that exists is not replaced.
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
    "activation_bits": ("a_bits", "abits", "activation_bit_width"),
    "qat_fraction": ("f", "fraction", "f_qat", "qat_frac", "qat_ratio"),
    "peak_learning_rate": ("lr", "learning_rate", "peak_lr", "max_lr", "eta"),
    "batch_tokens": ("batch_size", "tokens_per_batch", "global_batch_tokens", "batch"),
}

_NUMBERS = {word for column, sources, _ in DERIVED for word in (column, *sources)}
"""Columns that can only be numbers, because others follow from them."""
RECORDED = "config_hash"
"""A column that only run records have: their `error_<task>` columns are the tasks of one run, and `error` is their mean."""


def make_numeric(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of numbers, or mostly of numbers, become numeric.

    `frame.attrs["not_numbers"]` holds what was none, `frame.attrs["texts"]` all of such a column as it was written.
    """
    odd: dict[str, dict[Any, str]] = dict(frame.attrs.get("not_numbers", {}))
    texts: dict[str, dict[Any, str]] = dict(frame.attrs.get("texts", {}))
    for column in frame.columns:
        values = frame[column]
        if column in ("name", SOURCE) or pd.api.types.is_numeric_dtype(values):
            continue
        numbers = pd.to_numeric(values, errors="coerce")
        wrong = numbers.isna() & values.notna() & (values.astype(str).str.strip() != "")
        if column in _NUMBERS or numbers.notna().sum() >= max(1, wrong.sum()):
            odd[str(column)] = {index: str(values[index]) for index in frame.index[wrong]}
            if wrong.any():
                texts[str(column)] = {index: str(values[index]) for index in frame.index[values.notna()]}
            frame[column] = numbers
    frame.attrs["not_numbers"], frame.attrs["texts"] = odd, texts
    return frame


def derive(frame: pd.DataFrame) -> pd.DataFrame:
    """Add what follows from other columns (twice, because one may follow from another that did)."""
    if "error" not in frame.columns:
        errors = [column for column in frame.columns if str(column).startswith("error_") and RECORDED in frame.columns]
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
    return _full_widths(frame)


def _full_widths(frame: pd.DataFrame) -> pd.DataFrame:
    """Among quantized runs those that are not have the bits of full precision."""
    known = [column for column in ("bits", "activation_bits") if column in frame.columns]
    for column in known:
        if pd.api.types.is_numeric_dtype(frame[column]) and frame[column].notna().any():
            full = frame[column].isna() & ~frame.index.isin(list(frame.attrs.get("not_numbers", {}).get(column, {})))
            if column == "bits":
                full &= frame["qat_tokens"] == 0 if "qat_tokens" in frame.columns else False
            frame.loc[full, column] = FULL_BITS
    return frame


def missing_columns(frame: pd.DataFrame, needed: Iterable[str], who: str, places: Sequence[str | Path]) -> None:
    """Refuse a table without the columns that a law needs, and say what to type.

    Raises:
        UserError: a needed column is missing.
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
                f"columns: {listed(frame.columns)}",
                "; ".join(several),
                typed,
            )
            if line
        )
    )


def _guesses(column: str, present: Iterable[str]) -> list[str]:
    """What may be meant by a column that is missing: another name for it, one that has its name as a word, one like it."""
    known = {str(name).lower(): str(name) for name in present if name not in (SOURCE, *OTHER_NAMES, *_NUMBERS)}
    others = OTHER_NAMES.get(column, ())
    for other in others:
        if other in known:
            return [known[other]]
    wanted = {column, *(other for other in others if len(other) > 2)}
    parts = [known[name] for name in known if wanted & set(re.split(r"\W|_", name))]
    near = nearest(column, list(known))
    return parts or ([known[near]] if near else [])


def listed(columns: Iterable[str], limit: int = 24) -> str:
    """Names of columns for a message, the first `limit` of them."""
    names = [str(column) for column in columns if column != SOURCE]
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
