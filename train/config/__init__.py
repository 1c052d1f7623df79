"""The configuration of one run: typed sections, Hydra's composition, rules across fields. Imports no torch.

`sections` has the types and the help text, `schema` the whole configuration, `configs/` the values. `compose` builds a
configuration from them, `rules` and `preconditions` check it, `resolve` derives schedules and phases from it.
"""

from train.config.checks import require, require_layout
from train.config.compose import load_config, load_config_and_reasons, parse_config, with_defaults
from train.config.resolve.microbatch import job_of, local_hardware
from train.config.resolve.quantization import low_precision_phase
from train.config.resolve.schedule import schedule_of
from train.config.schema import Config

__all__ = [
    "Config",
    "job_of",
    "load_config",
    "load_config_and_reasons",
    "local_hardware",
    "low_precision_phase",
    "parse_config",
    "require",
    "require_layout",
    "schedule_of",
    "with_defaults",
]
