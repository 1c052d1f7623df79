"""Everything that can be wrong with a request is checked before any process group exists, and all of it is shown at once."""

from collections.abc import Iterable, Sequence
from itertools import chain

from common.errors import UserError
from train.config.preconditions import unmet_preconditions
from train.config.rules import check
from train.config.rules.layout import layout_rules
from train.config.schema import Config


def require(config: Config, *, world_size: int, overrides: Sequence[str] = ()) -> None:
    """Raise a UserError with one line for every rule that `config` breaks on `world_size` processes, and for everything that
    it needs of the disk and does not find. `overrides` are what the user typed."""
    _raise(chain(check(config, world_size=world_size, overrides=overrides), unmet_preconditions(config)))


def require_layout(config: Config, *, world_size: int) -> None:
    """The same for the rules about the layout alone."""
    _raise(layout_rules(config, world_size, ()))


def _raise(problems: Iterable[str]) -> None:
    lines = list(problems)
    if lines:
        raise UserError("\n".join(lines))
