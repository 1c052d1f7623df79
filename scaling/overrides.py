"""From a planned size and length to words for `python -m train`.

What all fitted runs had in common (their data, tokenizer, batch, schedule, ...) comes from their `config.yaml`; only what
differs from the defaults in `configs/` is spelled out. The model's shape is searched so that its parameters, embeddings
included, are as many as planned.
"""

import math
import shlex
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

# Not copied: chosen by the plan, or no part of what a run computes.
_CHOSEN = ("model.num_layers", "model.hidden_size", "model.num_heads", "model.num_kv_heads", "model.head_dim", "model.ffn_size")
_SKIPPED = ("run.name", "run.resume", "run.resume_force", "train.tokens", "train.steps", "train.profile", "train.dry_run")
_GROUPS = ("data", "tokenizer", "optimizer", "schedule", "quant", "logger")
DEFAULT_VOCABULARY = 32_768
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
    learning_rate: float | None = None,
    bits: float | None = None,
    qat_fraction: float | None = None,
) -> list[str]:
    """Overrides of a run of about `parameters` (all of them) on `tokens` tokens."""
    config = context.get("config", {})
    shape = shape_for(parameters, context)
    words = [f"run.name={name}", *_shared_words(config)]
    if "model.vocab_size" not in config:
        words.append(f"model.vocab_size={DEFAULT_VOCABULARY}")
    words += [f"model.{key}={value}" for key, value in shape.items()]
    words.append(f"train.tokens={round(tokens)}")
    warmup = config.get("schedule.warmup_tokens", _default_of("schedule.warmup_tokens", config))
    if isinstance(warmup, int) and warmup > 0.1 * tokens:
        words = [word for word in words if not word.startswith("schedule.warmup_tokens=")]
        words.append(f"schedule.warmup_tokens={round(0.1 * tokens)}")
    if learning_rate is not None:
        words = [word for word in words if not word.startswith("schedule.peak=")]
        words.append(f"schedule.peak={learning_rate:.4g}")
    if bits is not None:
        words += ["quant=qat", f"quant.bits={bits:g}"]
        words += [f"quant.start={1.0 - qat_fraction:.4g}"] if qat_fraction is not None else []
    return words


def command(words: list[str]) -> str:
    """A command line that a shell takes as it stands."""
    return shlex.join(["python", "-m", "train", *words])


def shape_for(parameters: float, context: Mapping[str, Any]) -> dict[str, int]:
    """The decoder whose parameters, embeddings included, come nearest, shaped like the fitted runs (or d = 64 layers)."""
    config = context.get("config", {})
    aspect, ratio = context.get("aspect", _DEFAULT_ASPECT), context.get("ffn_ratio", _DEFAULT_FFN_RATIO)
    vocabulary = config.get("model.vocab_size", DEFAULT_VOCABULARY)
    tables = 1 if config.get("model.tie_embeddings", False) else 2
    matrices = 3 if config.get("model.ffn", "swiglu") == "swiglu" else 2
    step = 8 if parameters < 1e7 else 64
    best: tuple[float, dict[str, int]] | None = None
    for width in range(step, 32_768 + 1, step):
        if tables * vocabulary * width > 1.2 * parameters and best is not None:
            break
        ffn = max(step, step * round(ratio * width / step))
        head_dim = _head_dim(width, context.get("head_dim"))
        block = (
            4 * width * width + matrices * width * ffn + 2 * width + (2 * head_dim if config.get("model.qk_norm", True) else 0)
        )
        layers = max(1, round((parameters - tables * vocabulary * width - width) / block))
        count = tables * vocabulary * width + layers * block + width
        score = abs(math.log(count / parameters)) + 0.05 * abs(math.log(width / layers / aspect))
        if best is None or score < best[0]:
            heads = width // head_dim
            best = (
                score,
                {"num_layers": layers, "hidden_size": width, "num_heads": heads, "num_kv_heads": heads, "ffn_size": ffn},
            )
    assert best is not None
    return best[1]


def _head_dim(width: int, wanted: int | None) -> int:
    """An even divisor of the width near the wanted one (128 for wide models, 64 for narrow ones)."""
    goal = wanted or (128 if width >= 2048 else 64)
    return min((size for size in range(2, width + 1, 2) if width % size == 0), key=lambda size: abs(math.log(size / goal)))


def _shared_words(config: Mapping[str, Any]) -> list[str]:
    words = []
    for group in _GROUPS:
        chosen = config.get(f"{group}.name")
        if isinstance(chosen, str) and chosen != _default_groups().get(group):
            words.append(f"{group}={chosen}")
    for key, value in config.items():
        if key in _CHOSEN + _SKIPPED or key.startswith(("parallel.", "checkpoint.", "health.")) or key.endswith(".name"):
            continue
        default = _default_of(key, config)
        if isinstance(default, str) and default.startswith("${"):
            default = config.get(default[2:-1])
        if value != default:
            words.append(f"{key}={_word(value)}")
    return words


def _word(value: Any) -> str:
    """A value in Hydra's syntax."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(_word(item) for item in value)}]"
    text = str(value)
    if isinstance(value, str) and not all(letter.isalnum() or letter in "/._*-+:%@" for letter in text):
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return text


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
