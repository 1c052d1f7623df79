"""Which rows a law can use, why others are left out, and what looks wrong about the numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from common.errors import UserError
from scaling.laws.base.columns import PHASES, SHARES
from scaling.record import STATUSES
from scaling.runs.columns import FOLLOWS_FROM, SOURCE, UNREADABLE, listed


@dataclass(frozen=True)
class LeftOut:
    """A row that is not used."""

    name: str
    reason: str


def usable_rows(frame: pd.DataFrame, needed: Iterable[str]) -> tuple[pd.DataFrame, list[LeftOut]]:
    """The rows whose needed columns hold sensible numbers, and the others with the reason."""
    odd = frame.attrs.get("not_numbers", {})
    reasons = pd.Series("", index=frame.index, dtype=object)

    def mark(rows: pd.Series, reason: "pd.Series | str") -> None:
        fresh = rows & (reasons == "")
        reasons[fresh] = reason[fresh] if isinstance(reason, pd.Series) else reason

    def mark_numbers(values: pd.Series, rows: pd.Series, reason: str) -> None:
        if rows.any():  # a text for each of a million rows takes seconds
            mark(rows, values[rows].map(reason.format).reindex(frame.index))

    if UNREADABLE in frame.columns:
        mark(frame[UNREADABLE].notna(), frame[UNREADABLE])
    if "status" in frame.columns:
        mark(_unfinished(frame), "the run is " + frame["status"].astype(str) + ", not finished")
    needed = list(needed)
    # A number that should follow from a text is missing: the text is the reason.
    sources = [source for column in needed for source in FOLLOWS_FROM.get(column, ())]
    for column in dict.fromkeys([*needed, *sources]):
        for index, text in odd.get(column, {}).items():
            if index in frame.index and (column in needed or frame.loc[index, needed].isna().any()):
                mark(pd.Series(frame.index == index, index=frame.index), f"{column} is {text!r}, not a number")
    for column in needed:
        if not pd.api.types.is_numeric_dtype(frame[column]):
            mark(frame[column].notna(), f"{column} is " + frame[column].map(repr) + ", not a number")
            mark(frame[column].isna(), f"{column} is missing")
            continue
        values = frame[column].astype(float)
        mark(values.isna(), f"{column} is missing")
        mark(pd.Series(np.isinf(values), index=frame.index), f"{column} is infinite")
        if column in SHARES:
            mark_numbers(values, (values < 0) | (values > 1), f"{column} is {{:g}}; it must be a share between 0 and 1")
        elif column in PHASES:
            mark_numbers(values, values < 0, f"{column} is {{:g}}; it must not be below 0")
        else:
            mark_numbers(values, values <= 0, f"{column} is {{:g}}; it must be above 0")
    plain = [column for column in frame.columns if column != SOURCE]
    mark(_duplicated(frame[plain]), "it is a copy of another row (every column is equal)")
    left_out = [LeftOut(str(frame.at[index, "name"]), str(reason)) for index, reason in reasons[reasons != ""].items()]
    return frame[reasons == ""], left_out


def _unfinished(frame: pd.DataFrame) -> pd.Series:
    """Which rows say that their run has not finished."""
    if "status" not in frame.columns:
        return pd.Series(False, index=frame.index)
    return frame["status"].isin([status for status in STATUSES if status != "finished"])


def _duplicated(frame: pd.DataFrame) -> pd.Series:
    try:
        return frame.duplicated()
    except TypeError:  # a cell that is a list
        return frame.astype(str).duplicated()


def best_rows(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Of rows that are equal in some columns, the one of lowest loss: the best of a sweep over anything else.

    Raises:
        UserError: there is no such column, or no loss to be lowest.
    """
    for column in (*columns, "loss"):
        if column not in frame.columns:
            why = "no such column" if column != "loss" else "there is no column loss, by which the best is known"
            raise UserError(f"--best-per {','.join(columns)}: {why} ({column}); columns: {listed(frame.columns)}")
    return frame.loc[frame.groupby(list(columns), dropna=False)["loss"].idxmin().sort_values()]


def remarks_on_numbers(frame: pd.DataFrame, needed: Iterable[str]) -> list[str]:
    """What looks wrong about usable rows: units, repeated numbers, ways of counting parameters and FLOPs."""
    remarks: list[str] = []
    columns = list(needed)
    # Whatever the law takes, its columns follow from these two; flops is looked at where it stands alone.
    for column, floor in (("tokens", 1e4), ("parameters", 1e3), ("flops", 1e8)):
        numeric = column in frame.columns and pd.api.types.is_numeric_dtype(frame[column])
        if numeric and frame[column].max() < floor and not (column == "flops" and remarks):
            remarks.append(
                f"{column} goes up to {frame[column].max():g} only: are these thousands, millions or billions? "
                f"If billions, type --rename '{column}={column}*1e9'"
            )
    if "loss" in columns and frame["loss"].max() > 15:
        remarks.append(f"loss goes up to {frame['loss'].max():g}: is it in nats per token, or a perplexity?")
    # Rows that are equal in what is fitted but not in name or elsewhere may be true repetitions: they stay.
    again = int(frame[columns].duplicated().sum())
    if again:
        remarks.append(
            f"{again} run{'s repeat' if again > 1 else ' repeats'} another's numbers exactly under another name; "
            "if they are copies, drop them"
        )
    for target in {"loss", "error"} & set(columns):
        same = ["name", *(column for column in columns if column != target)]
        twice = frame[frame.duplicated(same) & ~frame.duplicated([*same, target])]
        if len(twice):
            more = f" and {len(twice) - 1} more appear" if len(twice) > 1 else " appears"
            remarks.append(
                f"{twice['name'].iloc[0]}{more} again with another {target}: all are fitted; "
                "if one replaces the other, drop the old one"
            )
    return remarks + _compute(frame) + _embeddings(frame) + _mixed(frame)


def _compute(frame: pd.DataFrame) -> list[str]:
    if not {"flops", "parameters", "tokens"} <= set(frame.columns):
        return []
    ratio = frame["flops"] / (6.0 * frame["parameters"] * frame["tokens"])
    ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
    if ratio.empty or (ratio.min() > 0.9 and ratio.max() < 1.1):
        return []
    return [
        f"flops is {ratio.min():.3g} to {ratio.max():.3g} times 6 parameters tokens: units that differ, or parameters counted "
        "in another way (with or without embeddings)"
    ]


def _embeddings(frame: pd.DataFrame) -> list[str]:
    """Exponents depend on whether embeddings count, most of all for small models."""
    others = [column for column in frame.columns if str(column).startswith("parameters_") and "embed" in str(column)]
    for column in others:
        if "parameters" not in frame.columns or not pd.api.types.is_numeric_dtype(frame[column]):
            continue
        share = 1.0 - frame[column] / frame["parameters"]
        if share.max() > 0.1:
            return [
                f"parameters counts embeddings: they are up to {100 * share.max():.0f} % of a model here. Exponents depend on "
                f"this; forecasts must count the same way (--rename parameters={column} fits without)"
            ]
    return []


def _mixed(frame: pd.DataFrame) -> list[str]:
    """Losses on other text or other tokens are no points of one law."""
    for column, what in (("tokenizer", "tokenizers"), ("corpus", "corpora")):
        if column in frame.columns and (counts := frame[column].dropna().value_counts()).size > 1:
            first = str(counts.index[0])
            return [
                f"the runs are on {counts.size} {what}, whose losses are not comparable: fit one at a time, such as "
                f"--where \"{column} == '{first}'\" ({counts.iloc[0]} runs)"
            ]
    return []
