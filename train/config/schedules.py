"""From the configuration to the schedules it names. Imports no torch."""

from dataclasses import replace

from schedulers.schedule import Constant, PowerLaw, Schedule, final_decay, periodic_decays
from train.config.sections import (
    Config,
    ConstantScheduleConfig,
    CosineScheduleConfig,
    PowerScheduleConfig,
    WsdSScheduleConfig,
)


def schedule_of(config: Config) -> Schedule:
    """The learning rate as a function of tokens."""
    schedule, total = config.schedule, config.total_tokens
    found = Schedule(
        trunk=Constant(schedule.peak),
        warmup_tokens=schedule.warmup_tokens,
        warmup_shape=schedule.warmup_shape,
        warmup_start=schedule.warmup_start,
    )
    if isinstance(schedule, ConstantScheduleConfig):
        return found
    if isinstance(schedule, CosineScheduleConfig):
        decays = final_decay(total, total - schedule.warmup_tokens)
        return replace(found, decays=decays, decay_shape="cosine", floor=schedule.floor)
    if isinstance(schedule, PowerScheduleConfig):
        found = replace(found, trunk=PowerLaw(schedule.peak, schedule.a, schedule.b, config.train.batch_tokens))
    if isinstance(schedule, WsdSScheduleConfig):
        decays = periodic_decays(ends_of(config, schedule), schedule.decay_fraction)
    else:
        decays = final_decay(total, round(schedule.decay_fraction * total))
    return replace(
        found,
        decays=decays,
        decay_shape=schedule.decay_shape,
        decay_residue=schedule.decay_residue,
        floor=schedule.floor,
    )


def ends_of(config: Config, schedule: WsdSScheduleConfig) -> list[int]:
    """The tokens at which WSD-S's decays end, the last one with the run."""
    total, batches = config.total_tokens, config.batches
    if schedule.ends is None:
        return sorted({batches.tokens(batches.steps(-(-total // part))) for part in (4, 2, 1)})
    return [*(end for end in schedule.ends if end < total), total]
