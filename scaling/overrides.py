"""From a planned size and length to words for `python -m train`.

What all fitted runs had in common (their data, tokenizer, batch, schedule, ...) comes from their `config.yaml`; only what
differs from the defaults in `configs/` is spelled out. The model's shape is searched so that its parameters, embeddings
included, are as many as planned.
"""

import math
import re
import shlex
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError

# Not copied: chosen by the plan, or no part of what a run computes.
_CHOSEN = ("model.num_layers", "model.hidden_size", "model.num_heads", "model.num_kv_heads", "model.head_dim", "model.ffn_size")
_SKIPPED = ("run.name", "run.resume", "run.resume_force", "train.tokens", "train.steps", "train.profile", "train.dry_run")
_GROUPS = ("data", "tokenizer", "optimizer", "schedule", "quant", "logger")
DEFAULT_VOCABULARY = 32_768
NO_FRACTION = 1e-3
"""A QAT fraction below this is no phase."""
_DEFAULT_ASPECT, _DEFAULT_FFN_RATIO = 64.0, 8.0 / 3.0


def common_context(folders: Iterable[str]) -> dict[str, Any]:
    """What the configurations of runs have in common, {"config": flat keys, "aspect":, "ffn_ratio":, "head_dim":}; or {}."""
    configs = [
        _flat(yaml.safe_load(path.read_text()))
        for path in (Path(folder, "config.yaml") for folder in folders)
        if path.is_file()
    ]
    if not configs:
        return {}
    first = configs[0]
    shared = {key: value for key, value in first.items() if all(key in config and config[key] == value for config in configs)}
    widths = [config["model.hidden_size"] for config in configs if "model.hidden_size" in config]
    if len(widths) != len(configs):
        return {"config": shared}
    middle = sorted(configs, key=lambda config: config["model.hidden_size"])[len(configs) // 2]
    return {
        "config": shared,
        "aspect": middle["model.hidden_size"] / middle["model.num_layers"],
        "ffn_ratio": middle["model.ffn_size"] / middle["model.hidden_size"],
        "head_dim": middle["model.head_dim"],
    }


def words_for(
    context: Mapping[str, Any],
    parameters: float,
    tokens: float,
    *,
    name: str,
    most: float | None = None,
    batch_tokens: float | None = None,
    learning_rate: float | None = None,
    bits: float | None = None,
    qat_fraction: float | None = None,
) -> list[str]:
    """Overrides of a run of about `parameters` (all of them; not above `most`) on `tokens` tokens.

    `bits` quantizes it, for `qat_fraction` of the tokens (None: as the trainer chooses; none where the fraction is nothing).
    """
    config = context.get("config", {})
    words = {"run.name": name, **_shared_words(config)}
    words.setdefault("model.vocab_size", str(DEFAULT_VOCABULARY))
    words |= {f"model.{key}": str(value) for key, value in shape_for(parameters, context, most).items()}
    words["train.tokens"] = str(round(tokens))
    if batch_tokens is not None:
        words["train.batch_tokens"] = str(round(batch_tokens))
    warmup = config.get("schedule.warmup_tokens", _default_of("schedule.warmup_tokens", config))
    if isinstance(warmup, int) and warmup > 0.1 * tokens:
        words["schedule.warmup_tokens"] = str(round(0.1 * tokens))
    if learning_rate is not None:
        words["schedule.peak"] = f"{learning_rate:.4g}"
    if bits is not None and (qat_fraction is None or qat_fraction >= NO_FRACTION):
        words |= {"quant": "qat", "quant.bits": f"{bits:g}"}
        words |= {"quant.start": f"{1.0 - qat_fraction:.4g}"} if qat_fraction is not None else {}
    return [f"{key}={value}" for key, value in words.items()]


def command(words: list[str]) -> str:
    """A command line that a shell takes as it stands."""
    return shlex.join(["python", "-m", "train", *words])


def shape_for(parameters: float, context: Mapping[str, Any], most: float | None = None) -> dict[str, int]:
    """The decoder whose parameters, embeddings included, come nearest, shaped like the fitted runs (or d = 64 layers).

    Heads are as wide as the fitted runs' (or 64, 128 from a width of 2,048 on) where a multiple of 8 divides the width so, and
    their number is one that splits over devices. It has no more than `most` parameters.

    Raises:
        UserError: no decoder is so small.
    """
    config = context.get("config", {})
    aspect, ratio = context.get("aspect", _DEFAULT_ASPECT), context.get("ffn_ratio", _DEFAULT_FFN_RATIO)
    vocabulary = config.get("model.vocab_size", DEFAULT_VOCABULARY)
    rest: dict[str, Any] = {
        "vocab_size": vocabulary,
        "tie_embeddings": config.get("model.tie_embeddings", False),
        "ffn": config.get("model.ffn", "swiglu"),
        "qk_norm": config.get("model.qk_norm", True),
    }
    step = 8 if parameters < 1e7 else 64
    best: tuple[float, dict[str, int]] | None = None
    for width in range(step, 65_536 + 1, step):
        heads = _heads(width, context.get("head_dim"))
        ffn = max(step, step * round(ratio * width / step))
        shape = {"hidden_size": width, "num_heads": heads, "num_kv_heads": heads, "ffn_size": ffn}
        empty, one = (decoder_parameters(**shape | rest, num_layers=layers, head_dim=width // heads) for layers in (0, 1))
        if empty > 1.2 * parameters and best is not None:
            break
        layers = max(1, round((parameters - empty) / (one - empty)))
        if most is not None and empty + layers * (one - empty) > most:
            layers -= 1
        if layers < 1:
            continue
        count = empty + layers * (one - empty)
        score = abs(math.log(count / parameters)) + 0.05 * abs(math.log(width / layers / aspect))
        score += 0.02 * _oddness(width, heads, context.get("head_dim"))
        if best is None or score < best[0]:
            best = score, {"num_layers": layers, **shape}
    if best is None or best[0] > math.log(1000.0):
        raise UserError(f"no decoder with a vocabulary of {vocabulary} is as small as {parameters:.3g} parameters")
    return best[1]


def decoder_parameters(
    *,
    num_layers: int,
    hidden_size: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    ffn_size: int,
    vocab_size: int,
    ffn: str,
    tie_embeddings: bool,
    qk_norm: bool,
) -> int:
    """All parameters of the trainer's decoder, as its own shape record counts them (a test compares both)."""
    attention = 2 * hidden_size * head_dim * (num_heads + num_kv_heads)
    norms = 2 * hidden_size + (2 * head_dim if qk_norm else 0)
    block = attention + (3 if ffn == "swiglu" else 2) * hidden_size * ffn_size + norms
    return (1 if tie_embeddings else 2) * vocab_size * hidden_size + num_layers * block + hidden_size


def _wanted_head(width: int, fitted: int | None) -> int:
    return fitted or (128 if width >= 2048 else 64 if width >= 256 else 16)


def _heads(width: int, fitted: int | None) -> int:
    """The number of heads: as wide as wanted where the width, a multiple of 8, allows it."""
    goal = _wanted_head(width, fitted)
    if width % goal == 0:
        return width // goal
    sizes = (size for size in range(8, width + 1, 8) if width % size == 0)
    return width // min(sizes, key=lambda size: abs(math.log(size / goal)))


def _oddness(width: int, heads: int, fitted: int | None) -> float:
    """How far heads are from what people build: of another width than wanted, or so many that few device counts divide them."""
    unequal = abs(math.log(width / heads / _wanted_head(width, fitted)))
    divisor = 1 if heads <= 4 else 2 if heads <= 16 else 4 if heads <= 64 else 8
    narrow = fitted is None and width < 256  # nobody minds there
    return (0.0 if narrow else 10.0 * unequal) + 2.0 * (heads % divisor != 0)


def _shared_words(config: Mapping[str, Any]) -> dict[str, str]:
    words = {}
    for group in _GROUPS:
        chosen = config.get(f"{group}.name")
        if isinstance(chosen, str) and chosen != _default_groups().get(group):
            words[group] = chosen
    for key, value in config.items():
        if key in _CHOSEN + _SKIPPED or key.startswith(("parallel.", "checkpoint.", "health.")) or key.endswith(".name"):
            continue
        default = _default_of(key, config)
        if isinstance(default, str) and default.startswith("${"):
            default = config.get(default[2:-1])
        if value != default:
            words[key] = _word(value)
    return words


def _word(value: Any) -> str:
    """A value in Hydra's syntax. The trainer has such a function too; nothing that this room may import has one."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(_word(item) for item in value)}]"
    text = str(value)
    if isinstance(value, str) and (not _PLAIN.fullmatch(text) or text.lower() in ("null", "true", "false", "inf", "nan")):
        return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + found[2].replace("'", "\\'"), text) + "'"
    return text


_PLAIN = re.compile(r"[A-Za-z_/][\w/.*+:%@-]*", re.ASCII)  # what Hydra takes for text without quotes


@cache
def _yaml(name: str) -> dict[str, Any]:
    path = files("configs").joinpath(name)
    return dict(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.is_file() else {}


@cache
def _default_groups() -> dict[str, str]:
    return {
        group: option
        for entry in _yaml("config.yaml")["defaults"]
        if isinstance(entry, dict)
        for group, option in entry.items()
    }


def _default_of(key: str, config: Mapping[str, Any]) -> Any:
    """The default of a flat key, given the chosen group options; a sentinel where there is none."""
    section, _, rest = key.partition(".")
    option = (
        config.get(f"{section}.name", _default_groups().get(section)) if section in _GROUPS else _default_groups().get(section)
    )
    plain = _yaml(f"{section}/{option}.yaml") if section in _default_groups() else _yaml("config.yaml").get(section, {})
    return _flat(plain).get(rest, _NOTHING)


_NOTHING = object()


def _flat(plain: Any, before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in (plain or {}).items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = value
    return flat
