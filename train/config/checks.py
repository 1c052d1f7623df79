"""Checks of a whole request, before any process group exists. All problems are reported at once."""

from collections.abc import Iterable, Sequence
from itertools import chain

from common.errors import UserError
from train.config.preconditions import unmet_preconditions
from train.config.rules import check
from train.config.rules.layout import layout_rules
from train.config.schema import Config


def require(config: Config, *, world_size: int, overrides: Sequence[str] = ()) -> None:
    """Check `config` on `world_size` processes. `overrides` are those that the user typed.

    Raises:
        UserError: one line for every rule that `config` breaks and for every unmet precondition on disk.
    """
    _raise(chain(check(config, world_size=world_size, overrides=overrides), unmet_preconditions(config)))


def require_layout(config: Config, *, world_size: int) -> None:
    """Check the rules about the layout alone. Raises as `require` does."""
    _raise(layout_rules(config, world_size, ()))


def _raise(problems: Iterable[str]) -> None:
    lines = list(problems)
    if lines:
        raise UserError("\n".join(lines))
