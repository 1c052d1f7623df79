"""Which rows are points of one run: checkpoints share their run's luck, and count as one where noise is judged."""

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.errors import UserError
from scaling.runs.columns import SOURCE, listed

GROUP = "group"
"""Column of fitted runs that says which run a point belongs to."""
SINGLE = "none"
"""In place of a column: every row is a run of its own."""
_FEWEST = 5  # points of a curve, below which even steps mean nothing
_EVEN = 0.05  # how much the steps of a curve may differ, as a share


def find_groups(frame: pd.DataFrame, group: str | None) -> tuple[pd.Series | None, list[str]]:
    """The run of every row (text), None where every row is one; and remarks.

    Unless a column is named, rows that share a name and a size are points of one run.

    Raises:
        UserError: there is no such column.
    """
    if group == SINGLE:
        return None, []
    if group is not None:
        if group not in frame.columns:
            raise UserError(f"--group {group}: no such column; columns: {listed(frame.columns)}")
        written = frame.attrs.get("texts", {}).get(group, {})
        labels = pd.Series([str(written.get(index, value)) for index, value in frame[group].items()], index=frame.index)
        missing = frame[group].isna() & ~frame.index.isin(list(written))
        labels[missing] = "row " + labels.index[missing].astype(str)
        return (labels if labels.duplicated().any() else None), []
    names = frame["name"].astype(str)
    shared = names.duplicated(keep=False)
    sizes = frame["parameters"].groupby(names).nunique() if "parameters" in frame.columns else pd.Series(dtype=int)
    if shared.sum() > 1 and not (sizes > 1).any() and _curves(frame, names):
        count = names.nunique()
        return names, [
            f"rows share names: {len(names)} points of {count} run{'s' * (count > 1)}, and intervals count runs "
            f"(--group {SINGLE}: every row is a run of its own)"
        ]
    return None, _looks_like_checkpoints(frame)


def labels_of(frame: pd.DataFrame) -> npt.NDArray[np.intp]:
    """The number of the run of every row, from 0."""
    if GROUP not in frame.columns:
        return np.arange(len(frame))
    return np.asarray(pd.factorize(frame[GROUP])[0], dtype=np.intp)


def _curves(frame: pd.DataFrame, names: pd.Series) -> bool:
    """Whether rows of one name differ in tokens, as points of a run do; else they are repetitions."""
    if "tokens" not in frame.columns:
        return False
    return bool((frame["tokens"].groupby(names).nunique() > 1).any())


def _looks_like_checkpoints(frame: pd.DataFrame) -> list[str]:
    """A remark where most rows lie on curves: of one size, at even steps of tokens."""
    if not {"parameters", "tokens"} <= set(frame.columns):
        return []
    curves = rows = 0
    long = frame.groupby("parameters")["tokens"].transform("size") >= _FEWEST  # a million sizes of one row take a minute
    for _, tokens in frame[long].groupby("parameters")["tokens"]:
        steps = np.diff(np.unique(tokens))
        if len(steps) >= _FEWEST - 1 and steps.max() - steps.min() <= _EVEN * steps.mean():
            curves, rows = curves + 1, rows + len(tokens)
    if rows <= len(frame) / 2:
        return []
    texts = [
        str(column) for column in frame.columns
        if column not in ("name", SOURCE)
        and not pd.api.types.is_numeric_dtype(frame[column])
        and curves <= frame[column].nunique() < len(frame) / 3
    ]  # fmt: skip
    column = texts[0] if texts else "COLUMN, the column that names the run"
    return [
        f"{rows} of {len(frame)} rows look like checkpoints of {curves} runs (even steps of tokens at one size): intervals "
        f"take them for independent runs and are too narrow. Type --group {column}"
    ]
