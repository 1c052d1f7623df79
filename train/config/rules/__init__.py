"""Rules across fields of the configuration.

A rule looks at the configuration alone: it reads no disk and asks no device. Imports no torch.
"""

from collections.abc import Iterator, Sequence

from train.config.rules.layout import layout_rules
from train.config.rules.optimization import optimizer_rules, schedule_rules
from train.config.rules.quantization import quantization_rules
from train.config.schema import Config


def check(config: Config, *, world_size: int, overrides: Sequence[str] = ()) -> Iterator[str]:
    """One line for every rule broken, with its numbers. `overrides` are what the user typed, for the line to type instead."""
    yield from layout_rules(config, world_size, overrides)
    yield from optimizer_rules(config)
    quantization = list(quantization_rules(config))
    yield from quantization or schedule_rules(config)
