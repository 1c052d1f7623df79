"""One run, forecast from one or more fits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from common.errors import UserError
from scaling.fit.doubts import first_doubts
from scaling.fit.result import Fit
from scaling.fit.warnings import extrapolation, impossible
from scaling.runs.columns import FOLLOWS_FROM, derive

_SIZE = ("parameters", "tokens", "flops")


def predict_run(fits: Sequence[Fit], given: Mapping[str, float]) -> dict[str, Any]:
    """{"given":, "predictions": [{"law":, "target":, "value":, "low":, "high":, "law_low":, "law_high":}], "doubts":,
    "warnings":}.

    A law that takes the loss and has no chain of its own gets it from a loss fit among `fits`.

    Raises:
        UserError: a number that a law needs is not given, or one is given that no law here takes, or that follows from others.
    """
    if all(name in given for name in _SIZE):
        raise UserError("--flops are 6 parameters tokens: give two of --parameters, --tokens and --flops, not all three")
    frame = _frame(given)
    losses = next((fit for fit in fits if fit.law.target == "loss"), None)
    chosen = [_chained(fit, losses, given) for fit in fits]
    needed = {id(fit): _needed(fit) for fit in chosen}
    for fit in chosen:
        missing = [name for name in needed[id(fit)] if name not in frame.columns]
        if missing:
            words = " ".join(_option(name) for name in _ask_for(fit, missing, given))
            chain = ", or give a loss fit before it" if "loss" in missing else ""
            raise UserError(f"{fit.law.name} needs {', '.join(needed[id(fit)])} of a run; type {words}{chain}")
    if unused := _unused(given, {name for names in needed.values() for name in names}):
        laws = " and ".join(fit.law.name for fit in fits)
        raise UserError(f"{' '.join(map(_option, unused))}: {laws} does not use it; leave it out")
    predictions, warnings = [], []
    for fit in chosen:
        forecast = fit.predict({name: frame[name].to_numpy() for name in needed[id(fit)]})
        predictions.append(
            {
                "law": fit.law.name,
                "target": fit.law.target,
                "value": float(forecast.value[0]),
                "low": float(forecast.low[0]),
                "high": float(forecast.high[0]),
                "law_low": float(forecast.law_low[0]),
                "law_high": float(forecast.law_high[0]),
            }
        )
        beyond = impossible(fit, forecast.value, forecast.impossible)
        if not np.isfinite(forecast.low[0]) and not beyond:
            warnings.append(f"{fit.law.name}: no interval, because its runs do not identify the law where this run lies")
        warnings += [f"{fit.law.name}: {text}" for text in (*beyond, *extrapolation(fit, frame))]
    return {"given": dict(given), "predictions": predictions, "doubts": first_doubts(chosen), "warnings": warnings}


def _chained(fit: Fit, losses: Fit | None, given: Mapping[str, float]) -> Fit:
    """The fit as it is asked: a known loss takes the place of a chain."""
    if "loss" not in fit.law.columns or "loss" in given:
        return replace(fit, chain=None)
    return replace(fit, chain=fit.chain or losses)


def _needed(fit: Fit) -> list[str]:
    if fit.chain is None:
        return list(fit.law.columns)
    return list(dict.fromkeys([name for name in fit.law.columns if name != "loss"] + list(fit.chain.law.columns)))


def _unused(given: Mapping[str, float], needed: set[str]) -> list[str]:
    """What could be left out without any column missing."""
    return [name for name in given if needed <= set(_frame({key: given[key] for key in given if key != name}).columns)]


def _frame(given: Mapping[str, float]) -> pd.DataFrame:
    return derive(pd.DataFrame([given]).astype(float))


def _ask_for(fit: Fit, missing: Iterable[str], given: Mapping[str, float]) -> list[str]:
    """What to type for columns that are missing, most of which follow from size and tokens; a law is not asked its answer."""
    words = [
        word
        for name in missing
        for word in (FOLLOWS_FROM.get(name, (name,)) if fit.law.target not in FOLLOWS_FROM.get(name, ()) else (name,))
        if word not in given
    ]
    return list(dict.fromkeys(words)) or list(missing)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
