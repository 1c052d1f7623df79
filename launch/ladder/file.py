"""The file of a ladder: sizes x tokens per parameter x bits x QAT fractions x schedules x seeds.

Or what `scaling plan --json` wrote.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.config_files import group_options
from common.errors import UserError
from common.words import hydra_word, nearest
from scaling.plan.shape import shape_for
from train.config import Config, load_config

KEYS = ("name", "overrides", "sizes", "tokens_per_parameter", "bits", "qat_fractions", "schedules", "seeds")
_SHAPE = ("vocab_size", "tie_embeddings", "ffn", "qk_norm")


@dataclass(frozen=True)
class Wanted:
    """A run of a ladder."""

    name: str
    words: tuple[str, ...]
    """overrides, its name among them"""


@dataclass(frozen=True)
class _Option:
    """One value of one axis: its part of the run's name (empty where the axis has one value), and its overrides."""

    label: str
    words: tuple[str, ...]


def read_ladder(path: Path, more: Sequence[str] = ()) -> list[Wanted]:
    """The runs that a file asks for. `more`: overrides of all of them.

    Raises:
        UserError: the file is not a ladder, or has an unknown key or a value that is none.
    """
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is neither YAML nor JSON: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(plain, dict):
        raise UserError(f"{path} is no ladder: it must have {', '.join(KEYS)}, or be what `scaling plan --json` wrote")
    runs = _planned(path, plain, more) if "optimum" in plain else _crossed(path, plain, more)
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path}: two runs would have the name {twice[0]}: leave out values that are there twice")
    return runs


def _planned(path: Path, plan: dict[str, Any], more: Sequence[str]) -> list[Wanted]:
    """The ladder of a plan."""
    try:
        found = [[str(word) for word in run["overrides"]] for run in plan["ladder"]["runs"]]
        none = str(plan["ladder"].get("none", ""))
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: its key 'ladder' is not one of `scaling plan --json`") from None
    if not found:
        raise UserError(f"{path} proposes no runs ({none or 'its ladder is empty'}): scaling plan --ladder-share gives it more")
    runs = []
    for words in found:
        names = [word.partition("=")[2] for word in words if word.startswith("run.name=")]
        if not names:
            raise UserError(f"{path}: a run of its ladder has no run.name")
        runs.append(Wanted(names[-1], (*words, *more)))
    return runs


def _crossed(path: Path, plain: dict[str, Any], more: Sequence[str]) -> list[Wanted]:
    for key in plain:
        if key not in KEYS:
            near = nearest(str(key), KEYS)
            hint = f"; did you mean '{near}'?" if near else ""
            raise UserError(f"{path}: unknown key '{key}'{hint} (keys: {', '.join(KEYS)})")
    for key in ("sizes", "tokens_per_parameter"):
        if key not in plain:
            raise UserError(f"{path}: lacks {key}, such as {'sizes: [1e6, 3e6]' if key == 'sizes' else f'{key}: [10, 20]'}")
    for key in KEYS[1:]:
        if key in plain and (not isinstance(plain[key], list) or not (plain[key] or key == "overrides")):
            raise UserError(f"{path}: {key} must be a list, such as {key}: [{plain[key] or '...'}]")
    name = str(plain.get("name", path.stem))
    shared = [*map(str, plain.get("overrides", [])), *more]
    base = load_config([word for word in shared if not word.lstrip("+").startswith(("quant", "schedule"))])
    sizes = [_size(path, value, base) for value in plain["sizes"]]
    ratios = [_number(path, "tokens_per_parameter", value) for value in plain["tokens_per_parameter"]]
    widths = [_width(path, value) for value in plain.get("bits", [None])]
    fractions = [
        None if value is None else _number(path, "qat_fractions", value) for value in plain.get("qat_fractions", [None])
    ]
    schedules = [_schedule(path, value) for value in plain.get("schedules", [])] or [_Option("", ())]
    seeds = plain.get("seeds", [])
    if not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"{path}: seeds must be whole numbers, such as seeds: [0, 1]")
    parameters_of = {size: load_config([*shared, *size.words]).model.shape.parameters for size in sizes}
    runs = []
    for size, ratio, schedule, seed in itertools.product(sizes, ratios, schedules, seeds or [None]):
        parameters = parameters_of[size]
        for width, fraction in _quantized(widths, fractions):
            label = [name, size.label, f"{ratio:g}x", *([width.label] if width.label else [])]
            label += [f"qat{fraction:g}"] if fraction is not None and len(fractions) > 1 else []
            label += [schedule.label] if len(schedules) > 1 else []
            label += [f"s{seed}"] if len(seeds) > 1 else []
            run = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(label))
            words = [*shared, *size.words, f"train.tokens={math.ceil(ratio * parameters)}", *schedule.words, *width.words]
            words += [f"quant.start={1.0 - fraction:.6g}"] if fraction is not None else []
            words += [f"run.seed={seed}"] if seed is not None else []
            runs.append(Wanted(run, (*words, f"run.name={hydra_word(run)}")))
    return runs


def _quantized(widths: Sequence[_Option], fractions: Sequence[float | None]) -> list[tuple[_Option, float | None]]:
    """Every width with every fraction; full precision once."""
    return [(width, fraction) for width in widths for fraction in (fractions if width.words else [None])]


def _size(path: Path, value: Any, base: Config) -> _Option:
    """A size: a model's name, keys of `model`, or parameters."""
    options = group_options()["model"]
    if isinstance(value, dict):
        words = tuple(f"model.{key}={hydra_word(item)}" for key, item in value.items())
        shape = load_config(words).model if words else base.model
        return _Option(f"{shape.num_layers}x{shape.hidden_size}", words)
    if value in options:
        return _Option(str(value), (f"model={value}",))
    try:
        parameters = float(value)
        assert 0 < parameters < math.inf
    except (TypeError, ValueError, AssertionError):
        hint = f"; did you mean '{near}'?" if (near := nearest(str(value), options)) else ""
        raise UserError(
            f"{path}: sizes: {value}: neither a model ({', '.join(options)}){hint}, nor parameters such as 1e6, nor "
            "keys such as {num_layers: 2, hidden_size: 64}"
        ) from None
    known = {f"model.{key}": getattr(base.model, key) for key in _SHAPE}
    shape_words = {f"model.{key}": size for key, size in shape_for(parameters, {"config": known}).items()}
    return _Option(_short(parameters), tuple(f"{key}={size}" for key, size in shape_words.items()))


def _width(path: Path, value: Any) -> _Option:
    if value is None:
        return _Option("", ())
    return _Option(f"{(bits := _number(path, 'bits', value)):g}bit", ("quant=qat", f"quant.bits={bits:g}"))


def _schedule(path: Path, value: Any) -> _Option:
    options = group_options()["schedule"]
    plain = dict(value) if isinstance(value, dict) else {"name": value}
    name = plain.pop("name", None)
    if name not in options:
        raise UserError(f"{path}: schedules: {value}: there is {', '.join(options)}, or {{name: wsd, decay_fraction: 0.2}}")
    rest = [f"schedule.{key}={hydra_word(item)}" for key, item in plain.items()]
    label = "-".join([str(name), *(f"{key}{item}" for key, item in plain.items())])
    return _Option(label, (f"schedule={name}", *rest))


def _number(path: Path, key: str, value: Any) -> float:
    try:
        number = float(value)
        assert 0 < number < math.inf
        assert not isinstance(value, bool)
    except (TypeError, ValueError, AssertionError):
        raise UserError(f"{path}: {key}: {value} is not a number above 0") from None
    return number


def _short(parameters: float) -> str:
    """1200000 as 1.2M."""
    for unit, factor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= factor:
            return f"{parameters / factor:.3g}{unit}"
    return f"{parameters:.3g}"
