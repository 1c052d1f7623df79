"""Rules across fields of the configuration.

A rule sees the configuration alone: it reads no disk and queries no device. Imports no torch.
"""

from collections.abc import Iterator, Sequence

from train.config.rules.engine import engine_rules
from train.config.rules.layout import layout_rules
from train.config.rules.model import model_rules
from train.config.rules.optimization import optimizer_rules, schedule_rules
from train.config.rules.quantization import noise_rules, quantization_rules
from train.config.schema import Config


def check(config: Config, *, world_size: int, overrides: Sequence[str] = ()) -> Iterator[str]:
    """One line for every broken rule, with its numbers. `overrides`, which the user typed, go into the commands suggested."""
    yield from layout_rules(config, world_size, overrides)
    yield from engine_rules(config)
    yield from model_rules(config)
    yield from optimizer_rules(config)
    yield from noise_rules(config)
    quantization = list(quantization_rules(config))
    yield from quantization or schedule_rules(config)
