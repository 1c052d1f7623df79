"""From a planned size and length to words for `python -m train`.

What all fitted runs had in common (their data, tokenizer, batch, schedule, ...) comes from their `config.yaml`; only what
differs from the defaults in `configs/` is spelled out.
"""

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from common.config_files import default_options, group_options, option_values, read_config_file
from common.plain import flatten
from common.words import hydra_word
from scaling.plan.shape import DEFAULT_VOCABULARY, shape_for

# Not copied: chosen by the plan, or no part of what a run computes.
_CHOSEN = ("model.num_layers", "model.hidden_size", "model.num_heads", "model.num_kv_heads", "model.head_dim", "model.ffn_size")
_SKIPPED = ("run.name", "run.resume", "run.resume_force", "train.tokens", "train.steps", "train.profile", "train.dry_run")
_GROUPS = ("data", "tokenizer", "optimizer", "schedule", "quant")
NO_FRACTION = 1e-3
"""A QAT fraction below this is no phase."""


def common_context(folders: Iterable[str]) -> dict[str, Any]:
    """What the configurations of runs have in common, {"config": flat keys, "aspect":, "ffn_ratio":, "head_dim":}; or {}.

    "corpus_tokens" is there where all have trained on as many tokens of text.
    """
    folders = list(dict.fromkeys(folders))  # a table's million rows are of one file
    configs = [
        flatten(yaml.safe_load(path.read_text()) or {})
        for path in (Path(folder, "config.yaml") for folder in folders)
        if path.is_file()
    ]
    if not configs:
        return {}
    first = configs[0]
    shared = {key: value for key, value in first.items() if all(key in config and config[key] == value for config in configs)}
    widths = [config["model.hidden_size"] for config in configs if "model.hidden_size" in config]
    if len(widths) != len(configs):
        return {"config": shared, **_corpus(folders)}
    middle = sorted(configs, key=lambda config: config["model.hidden_size"])[len(configs) // 2]
    return {
        "config": shared,
        "aspect": middle["model.hidden_size"] / middle["model.num_layers"],
        "ffn_ratio": middle["model.ffn_size"] / middle["model.hidden_size"],
        "head_dim": middle["model.head_dim"],
        **_corpus(folders),
    }


def _corpus(folders: Iterable[str]) -> dict[str, int]:
    """{"corpus_tokens": training tokens of the text} if all runs say the same number, else {}."""
    found = set()
    for folder in folders:
        try:
            found.add(int(json.loads(Path(folder, "data.json").read_bytes())["splits"]["train"]["tokens"]))
        except (OSError, ValueError, KeyError, TypeError):
            return {}
    return {"corpus_tokens": found.pop()} if len(found) == 1 else {}


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


def _shared_words(config: Mapping[str, Any]) -> dict[str, str]:
    words = {}
    for group in _GROUPS:
        chosen = config.get(f"{group}.name")
        if isinstance(chosen, str) and chosen != default_options().get(group):
            words[group] = chosen
    for key, value in config.items():
        if (
            key in _CHOSEN + _SKIPPED
            or key.startswith(("parallel.", "checkpoint.", "health.", "logger."))
            or key.endswith(".name")
        ):
            continue
        default = _default_of(key, config)
        if isinstance(default, str) and default.startswith("${"):
            default = config.get(default[2:-1])
        if value != default:
            words[key] = hydra_word(value)
    return words


def _default_of(key: str, config: Mapping[str, Any]) -> Any:
    """The default of a flat key, given the chosen group options; a sentinel where there is none."""
    section, _, rest = key.partition(".")
    default = default_options().get(section)
    option = str(config.get(f"{section}.name", default) if section in _GROUPS else default)
    if section not in default_options():
        values = read_config_file("config.yaml").get(section) or {}
    elif option in group_options().get(section, ()):
        values = option_values(section, option)
    else:
        values = {}
    return flatten(values).get(rest, _NO_DEFAULT)


_NO_DEFAULT = object()
