"""Rules across fields of the configuration. All of them are checked before any process group exists, all violations shown.

A rule looks at the configuration alone: it reads no disk and asks no device. Imports no torch.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from common.errors import UserError
from train.config.rules.layout import layout_rules
from train.config.rules.optimization import optimizer_rules, schedule_rules
from train.config.rules.quantization import quantization_rules
from train.config.schema import Config


def require(config: Config, *, world_size: int, overrides: Sequence[str] = (), besides: Iterable[str] = ()) -> None:
    """Raise a UserError with one line for every rule that `config` breaks on `world_size` processes, and those of `besides`:
    what else is wrong, so that a user is told everything at once."""
    _raise(chain(check(config, world_size=world_size, overrides=overrides), besides))


def require_layout(config: Config, *, world_size: int) -> None:
    """The same for the rules about the layout alone."""
    _raise(layout_rules(config, world_size, ()))


def _raise(broken: Iterable[str]) -> None:
    problems = list(broken)
    if problems:
        raise UserError("\n".join(problems))


def check(config: Config, *, world_size: int, overrides: Sequence[str] = ()) -> Iterator[str]:
    """One line for every rule broken, with its numbers. `overrides` are what the user typed, for the line to type instead."""
    yield from layout_rules(config, world_size, overrides)
    yield from optimizer_rules(config)
    quantization = list(quantization_rules(config))
    yield from quantization or schedule_rules(config)
