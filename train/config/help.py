"""`--help`, which lists all keys, and `--cfg job`, which prints the configuration of a command line. Imports no torch."""

import dataclasses
import types
import typing
from typing import Any

import yaml

from common.config_files import group_options
from common.errors import UserError
from train.config.compose import load_config, section_defaults
from train.config.schema import Config

_USAGE = """\
foretrain train [KEY=VALUE ...]       train, with as many processes as the layout needs
foretrain train --cfg job [...]       print the resulting configuration, run nothing
python -m train [KEY=VALUE ...]       one process
torchrun --nproc-per-node N -m train [KEY=VALUE ...]
"""


def answer_without_running(arguments: list[str]) -> bool:
    """Print the answer to a command line that asks for help or its configuration. Returns whether it asks.

    Raises:
        UserError: an option that does not exist.
    """
    options = [argument for argument in arguments if argument.startswith("-")]
    if not options:
        return False
    if "--help" in options or "-h" in options:
        print(help_text(), end="")
        return True
    if options == ["--cfg"] or options == ["--cfg=job"]:
        rest = [argument for argument in arguments if argument not in ("--cfg", "--cfg=job", "job")]
        print(yaml.safe_dump(load_config(rest).as_dict(), sort_keys=False), end="")
        return True
    raise UserError(f"unknown option {options[0]}: there are --help and --cfg job; settings are typed KEY=VALUE")


def help_text() -> str:
    """Usage, the groups with their options, and every key with its default and meaning."""
    groups = [f"  {group}={'|'.join(options)}" for group, options in group_options().items()]
    lines = [_USAGE, "Groups", *groups]
    for section, annotation in typing.get_type_hints(Config).items():
        classes = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        for cls in classes:
            option = _option(cls)
            lines.append(f"\n{section}{f'={option}' if len(classes) > 1 else ''}: {cls.__doc__}")
            defaults = section_defaults(section, option)
            lines.extend(
                f"  {f'{section}.{key} = {_word(default)}':42} {_meaning(cls, key)}"
                for key, default in defaults.items()
                if key in _keys(cls)
            )
    return "\n".join(lines) + "\n"


def _option(cls: Any) -> str | None:
    """The group option that a class represents: the only value its `name` may have."""
    values = typing.get_args(typing.get_type_hints(cls).get("name"))
    return str(values[0]) if values and isinstance(values[0], str) else None


def _keys(cls: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if field.name != "name" or _option(cls) is None]


def _word(default: Any) -> str:
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    return "(to be given)" if default == "???" else str(default)


def _meaning(cls: Any, key: str) -> str:
    """The docstring of a key, possibly in a base class."""
    fields = [base.__pydantic_fields__[key] for base in cls.__mro__ if key in getattr(base, "__pydantic_fields__", {})]
    return next((str(field.description) for field in fields if field.description), "")
