"""Rules for the optimizer and the schedule: what they need of the layout, the initial weights and the length."""

import itertools
from collections.abc import Iterator

from train.config.resolve.schedule import schedule_of
from train.config.rules.length import has_length
from train.config.schema import Config
from train.config.sections.optimizer import AdamWConfig
from train.config.sections.schedule import ConstantScheduleConfig, CosineScheduleConfig, WsdSScheduleConfig


def optimizer_rules(config: Config) -> Iterator[str]:
    """Muon needs whole matrices, muP random initial weights."""
    parallel = config.parallel
    splits = [f"parallel.{axis}={size}" for axis in ("shard", "tensor", "context") if (size := getattr(parallel, axis)) > 1]
    if config.optimizer.name == "muon" and splits:
        yield (
            f"optimizer=muon needs whole matrices, and {' and '.join(splits)} split{'s' * (len(splits) == 1)} them: use "
            f"parallel.replicate and parallel.pipeline, or take optimizer=adamw"
        )
    folder = config.model.initial_weights
    if folder is not None and isinstance(config.optimizer, AdamWConfig) and config.optimizer.mup:
        yield (
            f"model.initial_weights={folder} with optimizer.mup=true: muP is a way to start from random weights; "
            f"set optimizer.mup=false"
        )


def schedule_rules(config: Config) -> Iterator[str]:
    """Warmup and decay fit into the run, and the floor is not above the rate."""
    schedule = config.schedule
    if not has_length(config):
        return
    total = config.total_tokens
    if isinstance(schedule, WsdSScheduleConfig):
        ends = list(_ends(config, schedule))
        yield from ends
        if ends:
            return
    rate = schedule_of(config)
    first = rate.decays[0] if rate.decays else (total, total)
    if schedule.warmup_tokens > first[0]:
        fraction = not isinstance(schedule, ConstantScheduleConfig | CosineScheduleConfig)
        where = "first period's" if len(rate.decays) > 1 else "run's"
        shorter = "schedule.decay_fraction" if config.run.trunk is None else "--decay-tokens"
        yield (
            f"schedule.warmup_tokens={schedule.warmup_tokens} and the decay of {first[1] - first[0]} tokens do not fit into "
            f"the {where} {first[1]} tokens: type schedule.warmup_tokens={min(first[1] // 20, int(first[0]))} or less"
            f"{f', or a smaller {shorter}' if fraction else ''}"
        )
    if isinstance(schedule, ConstantScheduleConfig):
        return
    if not rate.decays and (isinstance(schedule, CosineScheduleConfig) or schedule.decay_fraction > 0):
        advice = (
            "lower schedule.warmup_tokens" if isinstance(schedule, CosineScheduleConfig) else "raise schedule.decay_fraction"
        )
        yield f"schedule={schedule.name} has not one of the run's {total} tokens to decay in: {advice}"
    elif rate.decays and rate.trunk(rate.decays[-1][0]) == 0:  # too small for a float
        yield "schedule.a and .b leave a learning rate of 0 where the decay begins: raise them (the paper has 4 and -0.51)"
    elif schedule.floor > schedule.peak:
        yield f"schedule.floor={schedule.floor} is above schedule.peak={schedule.peak}"
    elif rate.decays and schedule.floor > (lowest := rate.trunk(rate.decays[-1][0])):
        yield (
            f"schedule.floor={schedule.floor} is above {lowest:.3g}, the learning rate at which the decay begins: lower it to "
            f"at most that"
        )


def _ends(config: Config, schedule: WsdSScheduleConfig) -> Iterator[str]:
    ends, total, batches = schedule.ends or [], config.total_tokens, config.batches
    if any(later <= end for end, later in itertools.pairwise(ends)):
        yield f"schedule.ends={ends}: they must grow"
    if ends and ends[-1] > total:
        yield f"schedule.ends={ends}: the run ends at {total} tokens, before {ends[-1]}"
    steps = {end: batches.steps(end) for end in ends if end <= total}
    for end, step in steps.items():
        if batches.tokens(step) != end:
            near = [tokens for tokens in (batches.tokens(step - 1), batches.tokens(step)) if tokens]
            yield f"schedule.ends: {end} tokens are not whole steps; the nearest: {' and '.join(map(str, near))}"
