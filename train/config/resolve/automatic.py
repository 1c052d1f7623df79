"""Keys that are `auto`: what the run, its model and this machine make of them. Imports no torch."""

import dataclasses
from collections.abc import Collection
from typing import Any

from parallel.engine.names import DEFAULT
from train.config.resolve.gpus import gpu_names
from train.config.schema import Config

PLACEHOLDERS: dict[str, Any] = {
    "train.precision": "fp32",
    "train.compile": False,
    "parallel.recompute": "none",
    "train.microbatch": 1,
    "schedule.warmup_tokens": 0,
}
"""Every key that may be `auto`, in the order in which they are resolved, and a valid value for the time being."""

_WARMUP_SHARE, _LEAST_WARMUP, _LARGEST_WARMUP_SHARE = 100, 80_000, 16
_WITHOUT_BF16 = ("K80", "P100", "P40", "V100", "T4", "GTX", "TITAN", "RTX 20", "Quadro RTX")


def take_automatic(plain: dict[str, Any]) -> list[str]:
    """The keys of a plain configuration that are `auto`. They get their placeholders, in place."""
    found = []
    for key, placeholder in PLACEHOLDERS.items():
        section, _, name = key.partition(".")
        if isinstance(plain.get(section), dict) and plain[section].get(name) == "auto":
            plain[section][name] = placeholder
            found.append(key)
    return found


def resolve(config: Config, keys: Collection[str]) -> tuple[Config, list[str]]:
    """The configuration with the values of these keys, and a line for each that says why."""
    reasons = []
    together = ("parallel.recompute", "train.microbatch")  # one search for both
    for key in PLACEHOLDERS:
        if key in keys and not (key == together[1] and together[0] in keys):
            values, why = _value(config, key, keys)
            config = _with(config, values)
            if values == {"schedule.warmup_tokens": _LEAST_WARMUP}:
                continue  # as in nearly every small run
            reasons.append(f"{' '.join(f'{name}={_word(value)}' for name, value in values.items())} (auto: {why})")
    return config, reasons


def _value(config: Config, key: str, keys: Collection[str]) -> tuple[dict[str, Any], str]:
    if key == "train.precision":
        precision, why = _precision(config)
        return {key: precision}, why
    if key == "train.compile":
        gpus = gpu_names(config.train.device)
        if config.parallel.engine != DEFAULT:
            return {key: False}, "only the default engine compiles"
        return {key: bool(gpus)}, f"on {gpus[0]} it pays" if gpus else "on a CPU the compiler costs more than short runs gain"
    if key == "schedule.warmup_tokens":
        return {key: _warmup(config)}, "a hundredth of the run, at least 80,000 tokens, at most a sixteenth of it"
    from train.config.resolve.microbatch import fastest  # the planner is only needed here

    free = ("train.microbatch" in keys, "parallel.recompute" in keys)
    microbatch, recompute, why = fastest(config, choose_microbatch=free[0], choose_recompute=free[1])
    values: dict[str, Any] = {"train.microbatch": microbatch, "parallel.recompute": recompute}
    return {name: value for name, value in values.items() if name in keys}, why


def _precision(config: Config) -> tuple[str, str]:
    gpus = gpu_names(config.train.device)
    if not gpus:
        return "fp32", "there is no GPU"
    if any(old in gpus[0] for old in _WITHOUT_BF16):
        return "fp32", f"{gpus[0]} has no bf16"
    return "bf16", f"{gpus[0]} has it"


def _warmup(config: Config) -> int:
    if (config.train.tokens is None) == (config.train.steps is None):
        return 0  # which a rule reports
    total = config.total_tokens
    return min(max(_LEAST_WARMUP, total // _WARMUP_SHARE), total // _LARGEST_WARMUP_SHARE)


def _with(config: Config, values: dict[str, Any]) -> Config:
    for key, value in values.items():
        section, _, name = key.partition(".")
        config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{name: value})})
    return config


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"
