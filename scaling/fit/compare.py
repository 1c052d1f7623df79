"""Several laws for one set of runs: which forecasts its largest runs best, and can the runs tell the laws apart?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import UserError
from scaling.fit.doubts import furthest
from scaling.fit.result import Fit, metrics

APART = 4.0
"""A difference of AIC below which runs do not tell two laws apart (Burnham and Anderson, 2002, section 2.6: 4 to 7)."""


@dataclass(frozen=True)
class Row:
    """A law among others."""

    law: str
    numbers: int
    """parameters that the runs determine"""
    error: float
    """mean relative error of the fitted runs"""
    aic: float
    """above the lowest"""
    roll_outs: Mapping[str, float]
    """direction -> root mean square of the misses, in log target, of the largest runs by the others"""
    roll_out: float
    """mean of these over the directions that all laws have"""
    doubt: str
    """the gravest, or nothing"""


def compare(fits: Sequence[Fit]) -> tuple[list[Row], str]:
    """The laws, best roll-out first, and what the runs can tell apart.

    AIC (Akaike, IEEE Transactions on Automatic Control 19, 1974) is that of Laplace noise in log target, which Huber's loss in
    logarithms stands for, and counts runs, not points of runs.

    Raises:
        UserError: laws of different targets, or fits of different runs.
    """
    targets = sorted({fit.law.target for fit in fits})
    if len(targets) > 1:
        raise UserError(f"laws of {' and '.join(targets)} cannot be compared: give laws of one target")
    if len({len(fit.runs) for fit in fits}) > 1:
        counts = ", ".join(f"{fit.law.name} {len(fit.runs)}" for fit in fits)
        raise UserError(f"the laws can use different runs ({counts}): choose common ones with --where")
    aic = np.array([_aic(fit) for fit in fits])
    last = [{one.column: float(np.sqrt(one.squared)) for one in furthest(fit)} for fit in fits]
    common = set.intersection(*(set(one) for one in last))
    rows = [
        Row(
            law=fit.law.name,
            numbers=fit.rank,
            error=metrics(fit)["relative_error"],
            aic=float(value - aic.min()),
            roll_outs=misses,
            roll_out=float(np.mean([misses[name] for name in common])) if common else float("nan"),
            doubt=next(iter(fit.doubts), ""),
        )
        for fit, value, misses in zip(fits, aic, last, strict=True)
    ]
    rows.sort(key=lambda row: (np.isnan(row.roll_out), row.roll_out, row.aic))
    return rows, _verdict(rows)


def _aic(fit: Fit) -> float:
    runs = int(fit.labels.max()) + 1
    return float(2.0 * runs * np.log(np.mean(np.abs(np.log(fit.fitted / fit.target)))) + 2.0 * fit.rank)


def _verdict(rows: Sequence[Row]) -> str:
    close = [row.law for row in rows if row.aic < APART]
    ahead = min(rows, key=lambda row: row.aic).law
    text = f"{rows[0].law} forecasts the largest runs best" if not np.isnan(rows[0].roll_out) else "too few runs for roll-outs"
    if len(close) > 1:
        return f"{text}; inside the runs {' and '.join(close)} cannot be told apart (AIC within {APART:g})"
    return f"{text}; inside the runs {ahead} describes them best (AIC {min(r.aic for r in rows if r.law != ahead):.3g} lower)"
