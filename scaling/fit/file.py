"""A fit as JSON, and back. What `scaling fit --json` prints is what `scaling predict`, `plan` and `report` read."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from common.errors import UserError
from common.plain import without_nan
from scaling.fit.intervals import LEVEL, Draws
from scaling.fit.result import Fit, RollOut, held_out_summary, metrics, parameter_table
from scaling.fit.solver import HUBER_DELTA, Objective
from scaling.laws import find_law
from scaling.laws.base.law import ObjectiveName
from scaling.runs.groups import GROUP
from scaling.runs.rows import LeftOut

VERSION = 1
DRAWS_IN_FILE = 1000
"""The most draws that a file holds."""
_TEXTS = ("name", GROUP)
_COLUMNS_IN_FILE = (*_TEXTS, "parameters", "tokens", "flops", "tokens_per_parameter", "bits", "qat_fraction", "loss")


def as_plain(fit: Fit) -> dict[str, Any]:
    """Plain data, JSON after `to_json`."""
    held = [
        {key: row[key] for key in ("name", "actual", "predicted", "low", "high", "relative_error")}
        | {"covered": bool(row["low"] <= row["actual"] <= row["high"]) if math.isfinite(row["low"]) else None}
        | {key: value for key, value in row.items() if key in ("naive", "parameters", "tokens", "flops", *fit.law.columns)}
        for row in fit.holdout.to_dict("records")
    ]
    columns = list(dict.fromkeys([*_COLUMNS_IN_FILE, *fit.law.columns, fit.law.target]))
    runs = fit.runs[[column for column in columns if column in fit.runs.columns]]
    return {
        "law": fit.law.name,
        "n": len(fit.runs),
        "parameters": parameter_table(fit),
        "objective": {"name": fit.objective.name, "value": fit.objective_value}
        | ({} if fit.objective.delta == HUBER_DELTA else {"delta": fit.objective.delta}),
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
        "doubts": list(fit.doubts),
        "roll_outs": [dataclasses.asdict(one) for one in fit.roll_outs],
        "holdout_summary": held_out_summary(fit),
        "starts": {"tried": fit.starts_tried, "reached": fit.starts_reached},
        "fixed": dict(fit.fixed),
        "left_out": [{"name": row.name, "reason": row.reason} for row in fit.left_out],
        "law_file": fit.law_file,
        "version": VERSION,
        "context": dict(fit.context),
        "chain": None if fit.chain is None else as_plain(fit.chain),
        "runs": runs.to_dict("list"),
        "weights": fit.weights.tolist(),
        "sweeps": fit.sweeps.to_dict("list"),
        "draws": {
            "theta": _rounded(fit.draws.theta[:DRAWS_IN_FILE]),
            "noise": _rounded(fit.draws.noise[:DRAWS_IN_FILE]),
            "drift": None if fit.draws.drift is None else _rounded(fit.draws.drift[:DRAWS_IN_FILE]),
        },
    }


def to_json(plain: Any, indent: int | None = None) -> str:
    """JSON; NaN and infinity become null."""
    return json.dumps(without_nan(plain), indent=indent)


def name_of_law(path: Path) -> str | None:
    """The law of the fit in a file; None where there is no such file, or it is not a fit."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(plain["law"]) if isinstance(plain, dict) and "law" in plain else None


class _Part(BaseModel):
    """Types are meant as they are written: no numbers in quotes, no NaN."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Value(_Part):
    value: float


class _Objective(_Part):
    name: ObjectiveName
    value: float
    delta: PositiveFloat = HUBER_DELTA


class _Intervals(_Part):
    method: Literal["bootstrap over runs", "Student-t", "none"]
    not_identified: NonNegativeInt


class _Starts(_Part):
    tried: NonNegativeInt
    reached: NonNegativeInt


class _LeftOut(_Part):
    name: str
    reason: str


class _Draws(_Part):
    theta: list[list[float]]
    noise: list[float]
    drift: list[float] | None = None


class _RollOut(_Part):
    column: str
    limit: float
    runs: PositiveInt
    miss: float
    beyond: float
    squared: float
    expected: float
    distance: float


class _Context(_Part):
    config: dict[str, Any] | None = None
    aspect: PositiveFloat | None = None
    ffn_ratio: PositiveFloat | None = None
    head_dim: PositiveInt | None = None
    corpus_tokens: PositiveInt | None = None


class _HeldOut(_Part):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None]
    name: str
    actual: float
    predicted: float
    low: float | None
    high: float | None
    relative_error: float | None
    covered: bool | None


class _File(_Part):
    """What is read of the file of a fit; `as_plain` writes more, for people."""

    law: str
    law_file: str | None
    parameters: dict[str, _Value]
    objective: _Objective
    holdout: list[_HeldOut]
    doubts: list[str] = []
    warnings: list[str]
    intervals: _Intervals
    roll_outs: list[_RollOut] = []
    starts: _Starts
    fixed: dict[str, float]
    left_out: list[_LeftOut]
    context: _Context
    chain: "_File | None"
    runs: dict[str, list[float | None] | list[str]]
    weights: list[PositiveFloat]
    sweeps: dict[str, list[float | None] | list[str]] = {}
    draws: _Draws


def read_fit(path: str | Path) -> Fit:
    """A fit that `scaling fit --out` or `--json` wrote; a directory stands for the `fit.json` in it.

    Raises:
        UserError: it is no such file, or of another version; something in it is missing, of another type, or contradictory.
    """
    path = Path(path)
    path = path / "fit.json" if path.is_dir() else path
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; `scaling fit LAW DATA --out DIR` writes DIR/fit.json") from None
    except ValueError:
        raise UserError(f"{path} is not JSON; `scaling fit LAW DATA --out DIR` writes DIR/fit.json") from None
    if not isinstance(plain, dict) or not {"law", "parameters", "version"} <= set(plain):
        raise UserError(f"{path} is not a fit; `scaling fit LAW DATA --out DIR` writes DIR/fit.json")
    if plain["version"] is True or plain["version"] != VERSION:
        raise UserError(f"{path} is of version {plain['version']!r}, this program reads {VERSION}: fit again")
    try:
        return _from_file(_File.model_validate(plain))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(word) for word in first["loc"] if not str(word).startswith("list["))
        raise UserError(f"{path} is damaged: {place}: {first['msg'].lower().partition(' or instance')[0]}; fit again") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _from_file(file: _File) -> Fit:
    law = find_law(file.law, file.law_file)
    values = {name: entry.value for name, entry in file.parameters.items() if name not in law.derived}
    law.check_values(values, "parameters")
    law.check_values(file.fixed, "fixed")
    runs = pd.DataFrame(_equally_long(file))
    for name in ("name", *law.columns, law.target):
        if name not in runs.columns or runs[name].isna().any():
            raise UserError(f"runs.{name} is damaged or missing; fit again")
    if set(values) != set(law.names) or any(len(row) != len(values) for row in file.draws.theta):
        raise UserError(f"parameters and draws are not those of {law.name}: {', '.join(law.names)}; fit again")
    theta = np.array(file.draws.theta, dtype=np.float64).reshape(-1, len(law.names))
    held = pd.DataFrame([row.model_dump() for row in file.holdout])
    for column in held.columns.difference(["name", "covered"]):
        held[column] = held[column].astype(float)
    return Fit(
        law=law,
        law_file=file.law_file,
        objective=Objective.of(law, file.objective.name, file.objective.delta),
        runs=runs,
        weights=np.array(file.weights, dtype=np.float64),
        theta=np.array([values[name] for name in law.names]),
        fixed=file.fixed,
        objective_value=file.objective.value,
        draws=Draws(
            file.intervals.method,
            theta,
            np.array(file.draws.noise),
            len(theta) + file.intervals.not_identified,
            None if file.draws.drift is None else np.array(file.draws.drift),
        ),
        roll_outs=tuple(RollOut(**one.model_dump()) for one in file.roll_outs),
        starts_tried=file.starts.tried,
        starts_reached=file.starts.reached,
        holdout=held,
        left_out=tuple(LeftOut(row.name, row.reason) for row in file.left_out),
        doubts=tuple(file.doubts),
        warnings=tuple(file.warnings),
        sweeps=pd.DataFrame(file.sweeps),
        chain=None if file.chain is None else _from_file(file.chain),
        context=file.context.model_dump(exclude_none=True),
    )


def _equally_long(file: _File) -> dict[str, Any]:
    """The columns of the runs: names as text, everything else as numbers, one of each and a weight for every run."""
    runs = file.runs
    if len({len(file.weights), *map(len, runs.values())}) != 1 or any(
        len(drawn) != len(file.draws.theta) for drawn in (file.draws.noise, file.draws.drift) if drawn is not None
    ):
        raise UserError("columns of runs, weights or draws are of different lengths; fit again")
    columns: dict[str, Any] = {"name": runs.get("name", [None] * len(file.weights))}
    for name, values in runs.items():
        if name not in _TEXTS and any(isinstance(value, str) for value in values):
            raise UserError(f"runs.{name} holds text; fit again")
        columns[name] = values if name in _TEXTS else np.array(values, dtype=np.float64)
    return columns


def _rounded(values: Any) -> Any:
    return [_rounded(row) if np.ndim(row) else float(f"{row:.7g}") for row in values]
