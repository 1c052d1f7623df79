"""The configuration of one run: typed sections, Hydra's composition, rules across fields. Imports no torch.

`sections` has the types and the help text, `configs/` the values, `compose` brings both together, `rules` checks across fields.
"""

from common.errors import UserError, WorkFailed
from train.config.compose import load_config, parse_config
from train.config.rules import require, require_layout
from train.config.schedules import schedule_of
from train.config.sections import (
    AdamWConfig,
    BpeTokenizerConfig,
    BytesTokenizerConfig,
    CheckpointConfig,
    Config,
    CorpusConfig,
    FilesCorpusConfig,
    FileTokenizerConfig,
    HealthConfig,
    ModelConfig,
    StdlibCorpusConfig,
)

__all__ = [
    "AdamWConfig",
    "BpeTokenizerConfig",
    "BytesTokenizerConfig",
    "CheckpointConfig",
    "Config",
    "CorpusConfig",
    "FileTokenizerConfig",
    "FilesCorpusConfig",
    "HealthConfig",
    "ModelConfig",
    "StdlibCorpusConfig",
    "UserError",
    "WorkFailed",
    "load_config",
    "parse_config",
    "require",
    "require_layout",
    "schedule_of",
]
