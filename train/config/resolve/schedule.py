"""The learning-rate schedule of a configuration. Imports no torch."""

from dataclasses import replace

from schedulers.schedule import Constant, PowerLaw, Schedule, final_decay, periodic_decays
from train.config.resolve.quantization import low_precision_phase
from train.config.schema import Config
from train.config.sections.schedule import (
    ConstantScheduleConfig,
    CosineScheduleConfig,
    PowerScheduleConfig,
    WsdSScheduleConfig,
)


def schedule_of(config: Config) -> Schedule:
    """The learning rate as a function of tokens.

    Quantization-aware training with `quant.fuse_decay`: the decay is the last `decay_fraction` of the run, but never starts
    before the quantized phase; if that is shorter, all of it is decay. Without `fuse_decay`: the whole schedule, with its
    decay, over the full-precision tokens; then a warmup and a decay over the quantized tokens. arXiv 2509.22935 compares the
    two, but gives neither shares nor shapes, so they are configurable.
    """
    phase, quant = low_precision_phase(config), config.low_precision
    if phase is None or quant is None:
        return _schedule_over(config, config.total_tokens, config.total_tokens)
    quantized_tokens = config.total_tokens - phase.start
    if quant.fuse_decay:
        return _schedule_over(config, config.total_tokens, quantized_tokens)
    first = _schedule_over(config, phase.start, phase.start)
    rewarm_tokens = round(quant.rewarm_fraction * quantized_tokens)
    second = replace(
        first,
        trunk=Constant(quant.rewarm_peak or config.schedule.peak),
        warmup_tokens=rewarm_tokens,
        decays=((rewarm_tokens, quantized_tokens),) if not isinstance(config.schedule, ConstantScheduleConfig) else (),
    )
    return replace(first, then=(phase.start, second))


def warnings_of(config: Config) -> list[str]:
    """Settings with an effect that the user may not want, one line each."""
    phase, quant, schedule = low_precision_phase(config), config.low_precision, config.schedule
    fraction = getattr(schedule, "decay_fraction", 0.0)
    if phase is None or quant is None or not quant.fuse_decay:
        return []
    quantized, wanted = config.total_tokens - phase.start, round(fraction * config.total_tokens)
    if quantized >= wanted - config.train.batch_tokens:
        return []
    return [
        f"the learning rate decays over the {quantized:,} quantized tokens alone, not over the {wanted:,} of "
        f"schedule.decay_fraction. To keep its length, set quant.start={1 - fraction:g} or less, or quant.fuse_decay=false"
    ]


def _schedule_over(config: Config, total: int, longest_decay: int) -> Schedule:
    """The schedule over `total` tokens, with no final decay longer than `longest_decay`."""
    schedule = config.schedule
    trunk_only = Schedule(
        trunk=Constant(schedule.peak),
        warmup_tokens=schedule.warmup_tokens,
        warmup_shape=schedule.warmup_shape,
        warmup_start=schedule.warmup_start,
    )
    if isinstance(schedule, ConstantScheduleConfig):
        return trunk_only
    if isinstance(schedule, CosineScheduleConfig):
        decays = final_decay(total, total - schedule.warmup_tokens)
        return replace(trunk_only, decays=decays, decay_shape="cosine", floor=schedule.floor)
    if isinstance(schedule, PowerScheduleConfig):
        trunk_only = replace(trunk_only, trunk=PowerLaw(schedule.peak, schedule.a, schedule.b, config.train.batch_tokens))
    if isinstance(schedule, WsdSScheduleConfig):
        decays = periodic_decays(ends_of(config, schedule), schedule.decay_fraction)
    else:
        decays = final_decay(total, min(round(schedule.decay_fraction * total), longest_decay))
    return replace(
        trunk_only,
        decays=decays,
        decay_shape=schedule.decay_shape,
        decay_residue=schedule.decay_residue,
        floor=schedule.floor,
    )


def ends_of(config: Config, schedule: WsdSScheduleConfig) -> list[int]:
    """The tokens at which WSD-S's decays end; the last is the run's end."""
    total, batches = config.total_tokens, config.batches
    if schedule.ends is None:
        return sorted({batches.tokens(batches.steps(-(-total // part))) for part in (4, 2, 1)})
    return [*(end for end in schedule.ends if end < total), total]
