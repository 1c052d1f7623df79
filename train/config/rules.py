"""Rules across fields of the configuration. All of them are checked before any process group exists, all violations shown.

Imports no torch.
"""

import dataclasses
import itertools
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from parallel.context.names import CHUNKS_OF_A_RANK, heads_divide
from train import huggingface
from train.config.context import context_method
from train.config.quantization import qat_phase
from train.config.schedules import schedule_of
from train.config.sections import (
    AdamWConfig,
    Config,
    ConstantScheduleConfig,
    CosineScheduleConfig,
    QatConfig,
    WsdSScheduleConfig,
)


def require(config: Config, *, world_size: int, overrides: Sequence[str] = ()) -> None:
    """Raise a UserError with one line for every rule that `config` breaks on `world_size` processes."""
    _raise(check(config, world_size=world_size, overrides=overrides))


def require_layout(config: Config, *, world_size: int) -> None:
    """The same for the rules about the layout alone."""
    _raise(_about_layout(config, world_size, ()))


def _raise(broken: Iterator[str]) -> None:
    problems = list(broken)
    if problems:
        raise UserError("\n".join(problems))


def check(config: Config, *, world_size: int, overrides: Sequence[str] = ()) -> Iterator[str]:
    """One line for every rule broken, with its numbers. `overrides` are what the user typed, for the line to type instead."""
    yield from _about_layout(config, world_size, overrides)
    yield from _optimizer(config)
    quantization = list(_quantization(config))
    yield from quantization or _schedule(config)
    yield from _initial_weights(config)


def _about_layout(config: Config, world_size: int, overrides: Sequence[str]) -> Iterator[str]:
    problems = [*_layout(config, world_size, overrides), *_divisions(config)]
    yield from problems
    if problems and config.parallel.layout.world_size <= world_size:
        yield from _nearest_layout(config, world_size)


def _divisions(config: Config) -> Iterator[str]:
    """What the layout divides must be divisible."""
    yield from _model(config)
    yield from _context(config)
    yield from _groups(config)
    yield from _length(config)
    yield from _pipeline(config)


def _nearest_layout(config: Config, world_size: int) -> Iterator[str]:
    """A line that names the possible layout with the fewest doublings of axes; of fewer processes only where it must be."""
    parallel = config.parallel
    for size in (world_size, *range(world_size - 1, max(0, world_size - 8), -1)):
        best = _nearest_of_size(config, size)
        if best is None:
            continue
        words = [f"parallel.{key}={value}" for key, value in best.items() if getattr(parallel, key) != value]
        if words:
            count = f"{size} process{'' if size == 1 else 'es'}"
            yield f"the nearest possible layout ({count}): {' '.join(words)}"
        return


def _nearest_of_size(config: Config, world_size: int) -> dict[str, object] | None:
    parallel = config.parallel
    given = dataclasses.asdict(parallel.layout)
    best: tuple[float, dict[str, object]] | None = None
    for axes in _factorisations(world_size, ("context", "tensor", "pipeline", "replicate", "shard")):
        distance = sum(abs(math.log2(axes[axis] / given[axis])) for axis in given)
        for schedule in dict.fromkeys((parallel.pipeline_schedule, "1f1b")):
            cost = distance + (0.5 if schedule != parallel.pipeline_schedule else 0.0)
            if best is not None and cost >= best[0]:
                continue
            changed: dict[str, Any] = {**given, **axes, "pipeline_schedule": schedule}
            candidate = dataclasses.replace(config, parallel=dataclasses.replace(parallel, **changed))
            if not any(_divisions(candidate)):
                best = cost, changed
    return best[1] if best is not None else None


def _factorisations(number: int, axes: Sequence[str]) -> Iterator[dict[str, int]]:
    """Every way to write `number` as a product of one factor per axis."""
    first, *rest = axes
    if not rest:
        yield {first: number}
        return
    for factor in (divisor for divisor in range(1, number + 1) if number % divisor == 0):
        for others in _factorisations(number // factor, rest):
            yield {first: factor, **others}


def _layout(config: Config, world_size: int, overrides: Sequence[str]) -> Iterator[str]:
    layout = config.parallel.layout
    typed = "".join(f" {shlex.quote(override)}" for override in overrides)
    if layout.world_size > world_size:
        yield (
            f"the layout {layout} needs {layout.world_size} processes, there {_are(world_size)}. Type: foretrain train{typed}"
            f"   (or: torchrun --nproc-per-node {layout.world_size} -m train{typed})"
        )
    elif layout.world_size < world_size:
        yield (
            f"{world_size} processes were started, the layout {layout} fills {layout.world_size}: make the product of "
            f"parallel.replicate, .shard, .tensor, .pipeline and .context {world_size}"
        )


def _are(number: int) -> str:
    return f"is {number}" if number == 1 else f"are {number}"


def _model(config: Config) -> Iterator[str]:
    model, layout, sequence = config.model, config.parallel.layout, config.train.sequence
    if model.num_heads % model.num_kv_heads:
        yield f"model.num_heads={model.num_heads} is not a multiple of model.num_kv_heads={model.num_kv_heads}"
    sizes = {f"model.{name}": getattr(model, name) for name in ("num_heads", "num_kv_heads", "ffn_size", "vocab_size")}
    sizes["train.sequence"] = sequence
    undivided = [f"{key}={size}" for key, size in sizes.items() if size % layout.tensor]
    if undivided:
        are = "is" if len(undivided) == 1 else "are"
        yield f"{', '.join(undivided)} {are} not divisible by parallel.tensor={layout.tensor}"
    tokenizer_size = getattr(config.tokenizer, "vocab_size", 257 if config.tokenizer.name == "bytes" else 0)
    if tokenizer_size > model.vocab_size:
        yield (
            f"the tokenizer has {tokenizer_size} entries, the model model.vocab_size={model.vocab_size} rows: "
            f"set model.vocab_size to at least {tokenizer_size}"
        )


def _context(config: Config) -> Iterator[str]:
    """A rank's part of the sequence falls into chunks, and tensor parallelism divides it once more; Ulysses divides heads."""
    parallel, model, sequence = config.parallel, config.model, config.train.sequence
    ranks, tensor, partition = parallel.context, parallel.tensor, parallel.context_partition
    if ranks == 1:
        return
    chunks = CHUNKS_OF_A_RANK[partition]
    divisor = ranks * math.lcm(chunks, tensor)
    if sequence % divisor:
        below = sequence // divisor * divisor
        product = f"parallel.context={ranks} x {chunks} chunks ({partition})" + f" and parallel.tensor={tensor}" * (tensor > 1)
        yield (
            f"train.sequence={sequence} is not divisible by {divisor}, as {product} need: the nearest is "
            f"{f'{below} or ' * (below > 0)}{below + divisor}"
        )
    heads, kv_heads = model.num_heads // tensor, model.num_kv_heads // tensor
    if context_method(config)[0] == "ulysses" and not heads_divide(heads, kv_heads, ranks):
        on_a_rank = f" on each of parallel.tensor={tensor} ranks" * (tensor > 1)
        yield (
            f"parallel.context_method=ulysses: {heads} query and {kv_heads} key/value heads{on_a_rank} do not divide among "
            f"parallel.context={ranks}: type parallel.context_method=auto, or another parallel.context"
        )


def _length(config: Config) -> Iterator[str]:
    train, layout = config.train, config.parallel.layout
    if train.tokens is not None and train.steps is not None:
        yield f"train.tokens={train.tokens} and train.steps={train.steps} are both set: set one and make the other null"
    if train.tokens is None and train.steps is None:
        yield "neither train.tokens nor train.steps is set: set one"
    per_pass = config.pass_tokens
    for key in ("batch_tokens", "batch_warmup_start"):
        tokens = getattr(train, key)
        if tokens is not None and tokens % per_pass:
            below = tokens // per_pass * per_pass
            nearest = f"{below} or {below + per_pass}" if below else f"{per_pass}"
            rows = math.gcd(tokens // (train.sequence * layout.data_parallel), train.microbatch)
            fits = tokens % (train.sequence * layout.data_parallel) == 0
            yield (
                f"train.{key}={tokens} is not a multiple of sequence x microbatch x data-parallel ranks = "
                f"{train.sequence} x {train.microbatch} x {layout.data_parallel} = {per_pass}: the nearest is {nearest}"
                + (f", or train.microbatch={rows}" if fits else "")
            )
    yield from _batch_warmup(config)


def _batch_warmup(config: Config) -> Iterator[str]:
    train = config.train
    start, over = train.batch_warmup_start, train.batch_warmup_tokens
    if start is None and over:
        yield f"train.batch_warmup_tokens={over} needs the size of the first batch: set train.batch_warmup_start"
    if start is not None and not over:
        yield f"train.batch_warmup_start={start} needs a length: set train.batch_warmup_tokens"
    if start is not None and (start > train.batch_tokens or train.batch_tokens % start):
        yield f"train.batch_tokens={train.batch_tokens} is not a multiple of its increment, train.batch_warmup_start={start}"


def _pipeline(config: Config) -> Iterator[str]:
    parallel, layers = config.parallel, config.model.num_layers
    train = config.train
    smallest = "train.batch_tokens" if train.batch_warmup_start is None else "train.batch_warmup_start"
    microbatches = (train.batch_warmup_start or train.batch_tokens) // config.pass_tokens
    schedule, ranks = parallel.pipeline_schedule, parallel.pipeline
    if ranks == 1:
        return
    per_rank = {"gpipe": 1, "1f1b": 1, "interleaved": parallel.virtual_stages}.get(schedule, 2)
    stages = ranks * per_rank
    if layers < stages:
        yield (
            f"model.num_layers={layers} is less than the {stages} stages of parallel.pipeline={ranks} with "
            f"parallel.pipeline_schedule={schedule}: a stage would be empty"
        )
    needed = {"gpipe": 1, "1f1b": stages, "interleaved": ranks}.get(schedule, stages)
    if parallel.recompute == "selective" and schedule in ("zbv", "dualpipev"):
        yield (
            f"parallel.recompute=selective keeps what a block has computed for one backward pass, and "
            f"parallel.pipeline_schedule={schedule} takes two: take parallel.recompute=full, or another schedule"
        )
    advice = f"raise {smallest} or lower train.microbatch"
    if microbatches < needed:
        yield (
            f"parallel.pipeline_schedule={schedule} with {stages} stages needs at least {needed} micro-batches a step, "
            f"there {_are(microbatches)}: {advice}"
        )
    elif schedule == "interleaved" and microbatches % ranks:
        yield (
            f"parallel.pipeline_schedule=interleaved needs a multiple of parallel.pipeline={ranks} micro-batches a step, "
            f"there {_are(microbatches)}: {advice}"
        )


def _optimizer(config: Config) -> Iterator[str]:
    parallel = config.parallel
    splits = [f"parallel.{axis}={size}" for axis in ("shard", "tensor", "context") if (size := getattr(parallel, axis)) > 1]
    if config.optimizer.name == "muon" and splits:
        yield (
            f"optimizer=muon needs whole matrices, and {' and '.join(splits)} split{'s' * (len(splits) == 1)} them: use "
            f"parallel.replicate and parallel.pipeline, or take optimizer=adamw"
        )


def _groups(config: Config) -> Iterator[str]:
    """A group of columns lies on one rank: a row that tensor parallelism splits is split between groups."""
    quant, model, tensor = config.quant, config.model, config.parallel.tensor
    if not isinstance(quant, QatConfig) or isinstance(quant.group, str):
        return
    split = {"model.num_heads x model.head_dim": model.num_heads * model.head_dim, "model.ffn_size": model.ffn_size}
    if any(size % tensor for size in split.values()):
        return  # which is reported already
    over = f" / parallel.tensor={tensor}" if tensor > 1 else ""
    columns = {"model.hidden_size": model.hidden_size, **{f"{key}{over}": size // tensor for key, size in split.items()}}
    if undivided := [f"{key} = {size}" for key, size in columns.items() if size % quant.group]:
        yield (
            f"quant.group={quant.group} does not divide {', '.join(undivided)}: take row, or a divisor of "
            f"{math.gcd(*columns.values())}, which divides every row of this model"
        )


def _quantization(config: Config) -> Iterator[str]:
    quant, schedule = config.quant, config.schedule
    if not isinstance(quant, QatConfig) or not _knows_its_tokens(config):
        return
    phase, total = qat_phase(config), config.total_tokens
    assert phase is not None
    if phase.start >= total:
        yield (
            f"{phase.why}: less than one step of the run's {total} tokens would be quantized; type quant.start=0.8, or "
            f"another share of the tokens before quantization that leaves a step"
        )
    if schedule.name == "wsd_s" or (schedule.name == "cosine" and quant.fuse_decay):
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


def _knows_its_tokens(config: Config) -> bool:
    """Whether the length is known and means something; if not, that is reported already."""
    return (config.train.tokens is None) != (config.train.steps is None) and not any(_batch_warmup(config))


def _schedule(config: Config) -> Iterator[str]:
    schedule = config.schedule
    if not _knows_its_tokens(config):
        return
    total = config.total_tokens
    if isinstance(schedule, WsdSScheduleConfig):
        ends = list(_ends(config, schedule))
        yield from ends
        if ends:
            return
    found = schedule_of(config)
    first = found.decays[0] if found.decays else (total, total)
    if schedule.warmup_tokens > first[0]:
        fraction = not isinstance(schedule, ConstantScheduleConfig | CosineScheduleConfig)
        where = "first period's" if len(found.decays) > 1 else "run's"
        shorter = "schedule.decay_fraction" if config.run.trunk is None else "--decay-tokens"
        yield (
            f"schedule.warmup_tokens={schedule.warmup_tokens} and the decay of {first[1] - first[0]} tokens do not fit into "
            f"the {where} {first[1]} tokens: lower schedule.warmup_tokens{f' or {shorter}' if fraction else ''}"
        )
    if isinstance(schedule, ConstantScheduleConfig):
        return
    if not found.decays and (isinstance(schedule, CosineScheduleConfig) or schedule.decay_fraction > 0):
        advice = (
            "lower schedule.warmup_tokens" if isinstance(schedule, CosineScheduleConfig) else "raise schedule.decay_fraction"
        )
        yield f"schedule={schedule.name} has not one of the run's {total} tokens to decay in: {advice}"
    elif found.decays and found.trunk(found.decays[-1][0]) == 0:  # too small for a float
        yield "schedule.a and .b leave a learning rate of 0 where the decay begins: raise them (the paper has 4 and -0.51)"
    elif schedule.floor > schedule.peak:
        yield f"schedule.floor={schedule.floor} is above schedule.peak={schedule.peak}"
    elif found.decays and schedule.floor > (lowest := found.trunk(found.decays[-1][0])):
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


def _initial_weights(config: Config) -> Iterator[str]:
    folder, optimizer = config.model.initial_weights, config.optimizer
    if folder is not None and isinstance(optimizer, AdamWConfig) and optimizer.mup:
        yield (
            f"model.initial_weights={folder} with optimizer.mup=true: muP is a way to start from random weights; "
            f"set optimizer.mup=false"
        )
    elif folder is not None:
        for problem in huggingface.problems(Path(folder).expanduser(), config.model):
            yield f"model.initial_weights={folder}: {problem}"
