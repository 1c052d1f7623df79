"""A fit as JSON, and back. What `scaling fit --json` prints is what `scaling predict`, `plan` and `report` read."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scaling.errors import UserError
from scaling.fit import KEPT_DRAWS, Fit
from scaling.interval import LEVEL, Draws
from scaling.laws import find_law
from scaling.solver import Objective
from scaling.trust import unknown_parameters
from scaling.usable import LeftOut

VERSION = 1
_KEPT_COLUMNS = ("name", "parameters", "tokens", "flops", "tokens_per_parameter", "bits", "qat_fraction", "loss")


def parameter_table(fit: Fit) -> dict[str, dict[str, float]]:
    """Value, low and high (95 %; NaN where the runs do not say) of parameters and derived numbers."""
    unknown, drawn = unknown_parameters(fit), fit.drawn_values()
    table = {}
    for name, value in fit.values().items():
        low, high = (float(bound) for bound in fit.draws.interval(drawn[name]))
        if name in unknown or (name in fit.law.derived and unknown):
            low = high = math.nan
        if name in fit.fixed:
            low = high = value
        table[name] = {"value": value, "low": low, "high": high}
    return table


def metrics(fit: Fit) -> dict[str, float]:
    """How well the law fits its runs, in the target's units; `relative_error` is the mean of |predicted - actual| / actual."""
    actual, difference = fit.target, fit.fitted - fit.target
    spread = float(np.sum((actual - actual.mean()) ** 2))
    return {
        "mae": float(np.mean(np.abs(difference))),
        "rmse": float(np.sqrt(np.mean(difference**2))),
        "r2": 1.0 - float(np.sum(difference**2)) / spread if spread else math.nan,
        "relative_error": float(np.mean(np.abs(difference / actual))) if (actual != 0).all() else math.nan,
    }


def as_plain(fit: Fit) -> dict[str, Any]:
    """Plain data, JSON after `to_json`."""
    held = [
        {key: row[key] for key in ("name", "actual", "predicted", "low", "high", "relative_error")}
        | {"covered": bool(row["low"] <= row["actual"] <= row["high"]) if math.isfinite(row["low"]) else None}
        | {key: value for key, value in row.items() if key in ("parameters", "tokens", "flops", *fit.law.columns)}
        for row in fit.holdout.to_dict("records")
    ]
    columns = list(dict.fromkeys([*_KEPT_COLUMNS, *fit.law.columns, fit.law.target]))
    runs = fit.runs[[column for column in columns if column in fit.runs.columns]]
    return {
        "law": fit.law.name,
        "n": len(fit.runs),
        "parameters": parameter_table(fit),
        "objective": {"name": fit.objective.name, "value": fit.objective_value},
        "metrics": metrics(fit),
        "holdout": held,
        "warnings": list(fit.warnings),
        "formula": fit.law.text,
        "source": fit.law.source,
        "intervals": {
            "method": fit.draws.method,
            "level": LEVEL,
            "draws": len(fit.draws.theta),
            "not_identified": fit.draws.lost,
        },
        "starts": {"tried": fit.starts_tried, "reached": fit.starts_reached},
        "fixed": dict(fit.fixed),
        "left_out": [{"name": row.name, "reason": row.reason} for row in fit.left_out],
        "law_file": fit.law_file,
        "version": VERSION,
        "context": dict(fit.context),
        "chain": None if fit.chain is None else as_plain(fit.chain),
        "runs": runs.to_dict("list"),
        "weights": fit.weights.tolist(),
        "draws": {
            "theta": _rounded(fit.draws.theta[:KEPT_DRAWS]),
            "noise": _rounded(fit.draws.noise[:KEPT_DRAWS]),
        },
    }


def to_json(plain: Any, indent: int | None = None) -> str:
    """JSON; what is no number becomes null."""
    return json.dumps(_finite(plain), indent=indent)


def read_fit(path: str | Path) -> Fit:
    """A fit that `scaling fit --out` or `--json` wrote; a directory stands for the `fit.json` in it.

    Raises:
        UserError: it is no such file.
    """
    path = Path(path)
    path = path / "fit.json" if path.is_dir() else path
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; `scaling fit LAW DATA --out DIR` writes DIR/fit.json") from None
    except ValueError:
        raise UserError(f"{path} is no JSON; `scaling fit LAW DATA --out DIR` writes DIR/fit.json") from None
    if not isinstance(plain, dict) or not {"law", "parameters", "draws", "runs"} <= set(plain):
        raise UserError(f"{path} is not a fit; `scaling fit LAW DATA --out DIR` writes DIR/fit.json")
    try:
        return _from_plain(plain)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged, or of another version ({type(error).__name__}: {error}); fit again") from None


def _from_plain(plain: dict[str, Any]) -> Fit:
    law = find_law(plain["law"], plain.get("law_file"))
    runs = pd.DataFrame(plain["runs"])
    for column in runs.columns:
        if column != "name":
            runs[column] = runs[column].astype(float)
    held = pd.DataFrame(plain["holdout"])
    for column in held.columns:
        if column not in ("name", "covered"):
            held[column] = held[column].astype(float)
    theta = np.array(plain["draws"]["theta"], dtype=np.float64).reshape(-1, len(law.names))
    intervals = plain["intervals"]
    return Fit(
        law=law,
        law_file=plain.get("law_file"),
        objective=Objective.of(law, plain["objective"]["name"]),
        runs=runs,
        weights=np.array(plain["weights"], dtype=np.float64),
        theta=np.array([plain["parameters"][name]["value"] for name in law.names]),
        fixed=plain["fixed"],
        objective_value=plain["objective"]["value"],
        draws=Draws(
            intervals["method"],
            theta,
            np.array(plain["draws"]["noise"], dtype=np.float64),
            len(theta) + intervals["not_identified"],
        ),
        starts_tried=plain["starts"]["tried"],
        starts_reached=plain["starts"]["reached"],
        holdout=held,
        left_out=tuple(LeftOut(row["name"], row["reason"]) for row in plain["left_out"]),
        warnings=tuple(plain["warnings"]),
        chain=None if plain["chain"] is None else _from_plain(plain["chain"]),
        context=plain["context"],
    )


def _rounded(values: Any) -> Any:
    return [_rounded(row) if np.ndim(row) else float(f"{row:.7g}") for row in values]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        return _finite(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
