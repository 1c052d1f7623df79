"""From command-line overrides to one typed configuration. Hydra composes it, pydantic checks the types; no file is written.

Imports no torch.
"""

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import pydantic
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.config_files import default_options, group_options, option_values, read_config_file, training_defaults
from common.errors import UserError
from common.words import nearest
from train.config.resolve.automatic import resolve, take_automatic
from train.config.schema import Config

_SEVERAL = "logger"  # the one group of which several options may be chosen at once

Origins = dict[str, set[str]]
"""Key -> the group options ("data=files") that have it; an empty set if every run has it."""


def load_config(overrides: Sequence[str] = ()) -> Config:
    """The typed configuration that `overrides` (Hydra's syntax) select, with every default filled in.

    Rules across fields are not checked here: see `train.config.rules.check`.

    Raises:
        UserError: unknown key or option (with the nearest valid one), missing or mistyped value; all of them at once.
    """
    return load_config_and_reasons(overrides)[0]


def load_config_and_reasons(overrides: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """The same, and a line for every key that was `auto`: its value, and why. Raises as `load_config` does."""
    plain = OmegaConf.to_container(_compose(overrides), resolve=True)
    assert isinstance(plain, dict)
    problem = _derive(plain["model"], plain["optimizer"]) if isinstance(plain["model"], dict) else None
    automatic = take_automatic(plain)  # type: ignore[arg-type]
    try:
        config = parse_config({str(key): value for key, value in plain.items()})
    except UserError as error:
        _report([problem, str(error)] if problem else [str(error)])
        raise
    _report([problem] if problem else [])
    return resolve(config, automatic)


def _derive(model: dict[Any, Any], optimizer: Any) -> str | None:
    """Fill in the model's keys that follow from others. Returns the problem if they do not fit together, else None.

    If one of the others is invalid itself, which is reported elsewhere, fill in any valid value.
    """
    heads, width = model["num_heads"], model["hidden_size"]
    usable = all(isinstance(size, int) and size > 0 for size in (heads, width))
    problem = None
    if model["num_kv_heads"] is None:
        model["num_kv_heads"] = heads if usable else 1
    if model["head_dim"] is None:
        if usable and width % (2 * heads):
            problem = (
                f"model.hidden_size={width} / model.num_heads={heads} is not an even width of a head: "
                f"set model.head_dim, or make model.hidden_size a multiple of {2 * heads}"
            )
        model["head_dim"] = width // heads if usable and not problem else 2
    _derive_multipliers(model, optimizer)
    return problem


def _derive_multipliers(model: dict[Any, Any], optimizer: Any) -> None:
    """Fill in the multipliers that are null, with muP (the Power Scheduler paper's table, arXiv 2408.13359) or without.

    The table lacks the logits' multiplier: that is from Yang et al. (arXiv 2203.03466, table 8), and MiniCPM uses it too.
    """
    sizes = [model["head_dim"], model["num_layers"], model["hidden_size"]]
    base = optimizer.get("mup_base_width", 1) if isinstance(optimizer, dict) else 1
    head_dim, layers, width, base = (size if isinstance(size, int) and size > 0 else 1 for size in (*sizes, base))
    mup = isinstance(optimizer, dict) and optimizer.get("mup") is True
    multipliers = {
        "embedding_multiplier": 12.0 if mup else 1.0,
        "residual_multiplier": 1.4 / math.sqrt(layers) if mup else 1.0,
        "attention_multiplier": 1 / head_dim if mup else 1 / math.sqrt(head_dim),
        "logit_multiplier": base / width if mup else 1.0,
    }
    model.update({key: value for key, value in multipliers.items() if model[key] is None})


def parse_config(plain: dict[str, Any]) -> Config:
    """Type a plain dictionary, such as a run's `config.yaml`.

    Raises:
        UserError: every wrong, missing or unknown key, a line each.
    """
    try:
        return pydantic.TypeAdapter(Config).validate_python(plain)
    except pydantic.ValidationError as error:
        raise UserError("\n".join(_describe(detail) for detail in error.errors())) from None


def with_defaults(plain: dict[str, Any]) -> dict[str, Any]:
    """A configuration with its missing keys at their defaults: one that was written before there were such keys."""
    filled = {"logger": section_defaults("logger", None)} | plain
    for section, values in plain.items():
        option = values.get("name") if isinstance(values, dict) and section in group_options() else None
        if isinstance(values, dict) and (option is None or option in group_options()[section]):
            filled[section] = section_defaults(section, option) | values
    return filled


def _describe(detail: Any) -> str:
    # For a union the location also names the option ("data.files.text_column"), which is not part of the key.
    words = [str(word) for word in detail["loc"]]
    if len(words) > 2 and words[1] in group_options().get(words[0], []):
        del words[1]
    given = "" if detail["type"] == "missing" else f"={_word(detail['input'])}"
    if detail["type"] == "list_type":
        key = ".".join(words)
        return f"{key}{given}: input should be a list; type '{key}=[{_word(detail['input'])}]'"
    if detail["type"] == "string_pattern_mismatch":
        return f"{'.'.join(words)}{given}: use letters, digits, '.', '_' and '-', and begin with a letter or digit"
    if detail["type"] == "int_parsing_size":
        return f"{'.'.join(words)}{given}: this number is too large; type 9e18 or less"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{'.'.join(words)}{given}: {message[0].lower()}{message[1:]}"


def _compose(overrides: Sequence[str]) -> Any:
    parsed = _parse(overrides)
    _report(_two_methods(parsed))
    _report(problem for override in parsed if (problem := _unknown(override)))
    # A valid key may be set with or without Hydra's `+` (add) before it.
    options_of = {override.key_or_group: override for override in parsed if override.key_or_group in group_options()}
    # Hydra has no syntax for an optional group without an option; that is the default anyway.
    chosen = [str(override.input_line).lstrip("+") for override in options_of.values() if override.value() is not None]
    values = [override for override in parsed if override.key_or_group not in group_options()]
    words = [*_training_words(options_of, values), *(str(override.input_line).lstrip("+") for override in values)]
    try:
        with initialize_config_module("configs", version_base="1.3"):
            try:
                composed = compose("config", overrides=chosen + words)
            except HydraException:
                options = compose("config", overrides=chosen)
                _report(problem for override in values if (problem := _misplaced(override, options)))
                raise
        _report(f"{key} has no default: add {key}=..." for key in sorted(OmegaConf.missing_keys(composed)))
        OmegaConf.resolve(composed)
        # A run has one length: setting one of the two keys removes the other's default.
        keys = {override.key_or_group for override in values}
        for key, other in (("tokens", "steps"), ("steps", "tokens")):
            if f"train.{key}" in keys and f"train.{other}" not in keys and composed.train[key] is not None:
                composed.train[other] = None
    except (HydraException, OmegaConfBaseException) as error:
        where = getattr(error, "full_key", None)
        raise UserError((f"{where}: " if where else "") + str(error).strip().splitlines()[0]) from None
    return composed


def _training_words(options_of: Mapping[str, Override], values: Sequence[Override]) -> list[str]:
    """How the chosen model is usually trained (`configs/_training`), as far as nobody has said otherwise.

    An experiment says otherwise; so does a length in steps, and the power law, whose rates belong together.
    """
    chosen = {group: str(override.value()) for group, override in options_of.items() if override.value() is not None}
    said = {override.key_or_group for override in values}
    if "experiment" in chosen:
        said |= set(_names(option_values("experiment", chosen["experiment"])))
    if "train.steps" in said:
        said.add("train.tokens")
    if chosen.get("schedule") == "power":
        said.add("schedule.peak")
    usual = training_defaults(chosen.get("model"))
    return [f"{key}={value}" for key, value in usual.items() if key not in said]


def _report(problems: Iterable[str]) -> None:
    lines = list(problems)
    if lines:
        raise UserError("\n".join(lines))


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            key, equals, value = text.partition("=")
            quoted = shlex.quote(f'{key}="{value}"')
            remedy = f"special characters need quotes: {quoted}" if equals else "type KEY=VALUE, such as train.tokens=1500000"
            raise UserError(f"cannot read '{text}': {remedy}") from None
        if override.is_delete():
            raise UserError(f"'{text}': a key cannot be deleted; set it instead")
        if override.is_sweep_override():
            raise UserError(f"'{text}': one command is one run; give a single value")
        parsed.append(override)
    return parsed


def _two_methods(parsed: Sequence[Override]) -> Iterator[str]:
    """The problem if two methods of low precision were chosen. Elsewhere the last option counts, here both were meant."""
    methods = {f"quant={override.value()}" for override in parsed if override.key_or_group == "quant"}
    if len(methods) > 1:
        yield f"{' and '.join(sorted(methods))}: weights have one method of low precision at a time; leave one out"


def _unknown(override: Override) -> str | None:
    """What is wrong with an override's key, or with the option it chooses; None if nothing is."""
    key = override.key_or_group
    if key in group_options():
        options = group_options()[key]
        value = override.value()
        if key == _SEVERAL and isinstance(value, list) and value and all(str(item) in options for item in value):
            return None
        if str(value) in options or (value is None and key in _optional_groups()):
            return None
        return f"{key}={_word(value)}: no such option, there is {', '.join(options)}{_hint(str(value), options, 0.5)}"
    group = key.removesuffix(".name")
    if group in group_options():
        return f"'{key}' follows from the option of its group: type {group}={_word(override.value())}"
    if key in known_keys():
        return None
    hint = _hint(key, [*known_keys(), *group_options()], 0.7)
    return f"unknown key '{key}'{hint} (all keys: foretrain train --help)"


def _misplaced(override: Override, options: Any) -> str | None:
    """The problem if an override's key belongs to an option of its group that this run does not use; else None."""
    key = override.key_or_group
    group = key.split(".")[0]
    default = f"{group}={section_defaults(group, None).get('name')}" if group in group_options() else ""
    origins = sorted(known_keys()[key], key=lambda option: (option != default, option))
    if not origins or f"{group}={options[group].name}" in origins:
        return None
    has = f"{group}={options[group].name}"
    return f"'{key}' is a key of {' and '.join(origins)}, this run has {has}: type {origins[0]}, or leave '{key}' out"


def _word(value: Any) -> str:
    """A value as the user types it, on one line."""
    return "null" if value is None else str(value).replace("\n", "\\n")


def _hint(word: str, names: Sequence[str], cutoff: float) -> str:
    # The right key in the wrong section is a good hint, even if the sections' names differ much.
    same_key = [name for name in names if name.split(".")[-1] == word.split(".")[-1]]
    near = nearest(word, names, cutoff) or next(iter(same_key), None)
    return f"; did you mean '{near}'?" if near else ""


@cache
def known_keys() -> Origins:
    """Every key that a user may set, and every section."""
    keys: Origins = {}
    base = read_config_file("config.yaml")
    base.pop("defaults")
    for key in _names(base):
        keys[key] = set()
    for group, options in group_options().items():
        if group == "experiment":
            continue
        keys_of = {option: _names({group: option_values(group, option)}) for option in options}
        for option, option_keys in keys_of.items():
            for key in option_keys:
                keys.setdefault(key, set()).add(f"{group}={option}")
        for key in set.intersection(*map(set, keys_of.values())):
            keys[key] = set()
    return keys


def _optional_groups() -> set[str]:
    return {group for group, option in default_options().items() if option is None}


def section_defaults(section: str, option: str | None) -> dict[str, Any]:
    """The default values of a section, not resolved; `option` None: the group's default option."""
    shared = dict(read_config_file("config.yaml").get(section, {}))  # of every option
    if section not in group_options():
        return shared
    chosen = option or default_options()[section]
    assert chosen is not None
    return shared | option_values(section, chosen)


def _names(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """Every dotted key of a tree, including those of its inner nodes."""
    names = []
    for key, value in tree.items():
        names.append(prefix + str(key))
        if isinstance(value, dict):
            names.extend(_names(value, f"{prefix}{key}."))
    return names
