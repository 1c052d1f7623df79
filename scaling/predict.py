"""One run, forecast from one or more fits."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from scaling.errors import UserError
from scaling.fit import Fit
from scaling.runs import FOLLOWS_FROM, derive
from scaling.trust import far_away


def predict_run(fits: Sequence[Fit], given: Mapping[str, float]) -> dict[str, Any]:
    """{"given":, "predictions": [{"law":, "target":, "value":, "low":, "high":, "law_low":, "law_high":}], "warnings":}.

    A downstream fit without a chain of its own takes its loss from a loss fit before it.

    Raises:
        UserError: a number that a law needs is not given, or not above zero.
    """
    for name, value in given.items():
        if not value > 0 or (name == "qat_fraction" and value > 1):
            raise UserError(
                f"--{name.replace('_', '-')} {value:g} must be above 0" + (" and at most 1" if name == "qat_fraction" else "")
            )
    frame = derive(pd.DataFrame([given]).astype(float))
    predictions, warnings = [], []
    losses = next((fit for fit in fits if fit.law.target == "loss"), None)
    for fit in fits:
        if "loss" in fit.law.columns and "loss" not in given and fit.chain is None and losses is not None:
            fit = replace(fit, chain=losses)
        chained = fit.chain is not None and "loss" not in given
        if not chained:
            fit = replace(fit, chain=None)
        needed = [name for name in fit.law.columns if not (chained and name == "loss")]
        needed += list(fit.chain.law.columns) if chained and fit.chain is not None else []
        missing = [name for name in needed if name not in frame.columns]
        if missing:
            words = " ".join(f"--{name.replace('_', '-')}" for name in _ask_for(missing, given))
            chain = ", or give a loss fit before it" if "loss" in missing else ""
            raise UserError(f"{fit.law.name} needs {', '.join(needed)} of a run; type {words}{chain}")
        forecast = fit.predict({name: frame[name].to_numpy() for name in needed})
        low, high = float(forecast.low[0]), float(forecast.high[0])
        predictions.append(
            {
                "law": fit.law.name,
                "target": fit.law.target,
                "value": float(forecast.value[0]),
                "low": low,
                "high": high,
                "law_low": float(forecast.law_low[0]),
                "law_high": float(forecast.law_high[0]),
            }
        )
        if not np.isfinite(low):
            warnings.append(f"{fit.law.name}: no interval, because its runs do not identify the law where this run lies")
        warnings += [f"{fit.law.name}: {text}" for text in far_away(fit, frame)]
    return {"given": dict(given), "predictions": predictions, "warnings": warnings}


def _ask_for(missing: list[str], given: Mapping[str, float]) -> list[str]:
    """What to type for columns that are missing, most of which follow from size and tokens."""
    words = [word for name in missing for word in FOLLOWS_FROM.get(name, (name,)) if word not in given]
    return list(dict.fromkeys(words)) or missing
