"""The configuration of one run: typed sections, Hydra's composition, rules across fields. Imports no torch.

`sections` has the types and the help text, `schema` the whole, `configs/` the values; `compose` brings them together, `rules`
and `preconditions` say what is wrong with it, `resolve` what it comes to.
"""

from train.config.checks import require, require_layout
from train.config.compose import load_config, parse_config
from train.config.resolve.schedule import schedule_of
from train.config.schema import Config

__all__ = ["Config", "load_config", "parse_config", "require", "require_layout", "schedule_of"]
