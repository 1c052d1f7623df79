"""Rules for low-precision weights: what they need of the model, the length and the schedule."""

import math
from collections.abc import Iterator

from train.config.resolve.quantization import low_precision_phase
from train.config.rules.length import has_length
from train.config.schema import Config
from train.config.sections.quantization import NoiseConfig, QatConfig


def group_rules(config: Config) -> Iterator[str]:
    """A group of columns is on one rank: tensor parallelism splits rows only between groups."""
    quant, model, tensor = config.quant, config.model, config.parallel.tensor
    if not isinstance(quant, QatConfig) or isinstance(quant.group, str):
        return
    split = {"model.num_heads x model.head_dim": model.num_heads * model.head_dim, "model.ffn_size": model.ffn_size}
    if any(size % tensor for size in split.values()):
        return  # the layout rules report this
    divided = f" / parallel.tensor={tensor}" if tensor > 1 else ""
    columns = {"model.hidden_size": model.hidden_size, **{f"{key}{divided}": size // tensor for key, size in split.items()}}
    if undivided := [f"{key} = {size}" for key, size in columns.items() if size % quant.group]:
        yield (
            f"quant.group={quant.group} does not divide {', '.join(undivided)}: take row, or a divisor of "
            f"{math.gcd(*columns.values())}, which divides every row of this model"
        )


def noise_rules(config: Config) -> Iterator[str]:
    """Blocks are whole, also on a rank of tensor parallelism; bit widths are in order, and bf16 keeps the noise."""
    quant = config.quant
    if not isinstance(quant, NoiseConfig):
        return
    if quant.start == "auto":
        yield f"quant.start=auto is the law of quantization-aware training: with quant={quant.name} type a share, quant.start=0"
    if quant.b_target > quant.b_init:
        yield f"quant.b_target={quant.b_target:g} is above quant.b_init={quant.b_init:g}, from which bit widths fall to it"
    if config.train.precision == "bf16" and quant.b_target > _LAST_BF16_BIT:
        yield (
            f"quant.b_target={quant.b_target:g} with train.precision=bf16: a bf16 addition loses noise of more than "
            f"{_LAST_BF16_BIT} bits; type quant.b_target={_LAST_BF16_BIT} or less, or train.precision=fp32"
        )
    yield from _block_rules(config, quant)


_LAST_BF16_BIT = 9


def _block_rules(config: Config, quant: NoiseConfig) -> Iterator[str]:
    model, tensor = config.model, config.parallel.tensor
    split = {
        "model.num_heads x model.head_dim": model.num_heads * model.head_dim,
        "model.num_kv_heads x model.head_dim": model.num_kv_heads * model.head_dim,
        "model.ffn_size": model.ffn_size,
        **({"model.vocab_size": model.vocab_size} if quant.outer else {}),
    }
    if any(size % tensor for size in split.values()):
        return  # the layout rules report this
    divided = f" / parallel.tensor={tensor}" if tensor > 1 else ""
    sizes = {"model.hidden_size": model.hidden_size, **{f"{key}{divided}": size // tensor for key, size in split.items()}}
    if undivided := [f"{key} = {size}" for key, size in sizes.items() if size % quant.block]:
        fitting = [block for block in (4, 8, 16, 32, 64, 128) if not any(size % block for size in sizes.values())]
        advice = f"type quant.block={' or '.join(map(str, fitting))}" if fitting else "take sizes that a multiple of 4 divides"
        yield f"quant.block={quant.block} does not divide {', '.join(undivided)}, and blocks must be whole: {advice}"


def quantization_rules(config: Config) -> Iterator[str]:
    """The low-precision phase has at least one step, and fits the schedule."""
    quant, schedule = config.low_precision, config.schedule
    if quant is None or not has_length(config):
        return
    phase, total = low_precision_phase(config), config.total_tokens
    assert phase is not None
    if phase.start >= total:
        yield (
            f"{phase.why}: less than one step of the run's {total} tokens would be quantized; type quant.start=0.8, or "
            f"another share of the tokens before quantization that leaves a step"
        )
    if phase.start > 0 and (schedule.name == "wsd_s" or (schedule.name == "cosine" and quant.fuse_decay)):
        remedy = " or quant.fuse_decay=false" * (schedule.name == "cosine")
        yield (
            f"schedule={schedule.name} decays in full precision, which quant.fuse_decay={str(quant.fuse_decay).lower()} has no "
            f"place for: take schedule=wsd, power or constant{remedy}"
        )
    if not quant.fuse_decay and (rewarm := quant.rewarm_peak) is not None and getattr(schedule, "floor", 0.0) > rewarm:
        yield f"schedule.floor={getattr(schedule, 'floor', 0.0)} is above quant.rewarm_peak={rewarm}"
    if quant.fuse_decay and quant.rewarm_peak is not None:
        yield f"quant.rewarm_peak={quant.rewarm_peak} needs quant.fuse_decay=false: with true there is no second rise"
    if not quant.fuse_decay and phase.start == 0 and schedule.name != "constant":
        yield "quant.fuse_decay=false needs tokens in full precision to decay in: raise quant.start, or set it to true"
