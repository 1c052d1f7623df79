"""Rules for the layout: number of processes, divisibility of the model, the sequence and the batch."""

import dataclasses
import math
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from parallel.context.names import CHUNKS_OF_A_RANK, heads_divide
from parallel.names import V_SHAPED, fewest_microbatches, stage_count
from train.config.rules.length import length_rules
from train.config.rules.quantization import group_rules
from train.config.schema import Config


def layout_rules(config: Config, world_size: int, overrides: Sequence[str]) -> Iterator[str]:
    """One line for every rule about the layout that `config` breaks, and one with the nearest possible layout."""
    problems = [*_layout(config, world_size, overrides), *_divisions(config)]
    yield from problems
    if problems and config.parallel.layout.world_size <= world_size:
        yield from _nearest_layout(config, world_size)


def _divisions(config: Config) -> Iterator[str]:
    """Sizes that the layout does not divide."""
    yield from _model(config)
    yield from _context(config)
    yield from group_rules(config)
    yield from length_rules(config)
    yield from _pipeline(config)


def _nearest_layout(config: Config, world_size: int) -> Iterator[str]:
    """A line with the possible layout that doubles or halves axes the fewest times; with fewer processes only if it must."""
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
            f"the layout {layout} needs {layout.world_size} processes, there {_is_or_are(world_size)}. "
            f"Type: foretrain train{typed}   (or: torchrun --nproc-per-node {layout.world_size} -m train{typed})"
        )
    elif layout.world_size < world_size:
        yield (
            f"{world_size} processes were started, the layout {layout} fills {layout.world_size}: make the product of "
            f"parallel.replicate, .shard, .tensor, .pipeline and .context {world_size}"
        )


def _is_or_are(number: int) -> str:
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
        rows = -(-model.vocab_size // layout.tensor) * layout.tensor
        hint = f": type model.vocab_size={rows}, whose last rows stay unused" if rows != model.vocab_size else ""
        yield f"{', '.join(undivided)} {are} not divisible by parallel.tensor={layout.tensor}{hint}"
    if config.tokenizer.vocab_size > model.vocab_size:
        yield (
            f"the tokenizer has {config.tokenizer.vocab_size} entries, the model model.vocab_size={model.vocab_size} rows: "
            f"set model.vocab_size to at least {config.tokenizer.vocab_size}"
        )


def _context(config: Config) -> Iterator[str]:
    """Context ranks divide the sequence into chunks, and tensor parallelism divides those again; Ulysses divides heads."""
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
    # `auto` never chooses a method that the heads do not divide for.
    if parallel.context_method == "ulysses" and not heads_divide(heads, kv_heads, ranks):
        on_a_rank = f" on each of parallel.tensor={tensor} ranks" * (tensor > 1)
        yield (
            f"parallel.context_method=ulysses: {heads} query and {kv_heads} key/value heads{on_a_rank} do not divide among "
            f"parallel.context={ranks}: type parallel.context_method=auto, or another parallel.context"
        )


def _pipeline(config: Config) -> Iterator[str]:
    parallel, layers = config.parallel, config.model.num_layers
    train = config.train
    smallest = "train.batch_tokens" if train.batch_warmup_start is None else "train.batch_warmup_start"
    microbatches = (train.batch_warmup_start or train.batch_tokens) // config.pass_tokens
    schedule, ranks = parallel.pipeline_schedule, parallel.pipeline
    if ranks == 1:
        return
    stages = stage_count(ranks, schedule, parallel.virtual_stages)
    if layers < stages:
        yield (
            f"model.num_layers={layers} is less than the {stages} stages of parallel.pipeline={ranks} with "
            f"parallel.pipeline_schedule={schedule}: a stage would be empty"
        )
    needed = fewest_microbatches(ranks, schedule, parallel.virtual_stages)
    if parallel.recompute == "selective" and schedule in V_SHAPED:
        yield (
            f"parallel.recompute=selective keeps what a block has computed for one backward pass, and "
            f"parallel.pipeline_schedule={schedule} takes two: take parallel.recompute=full, or another schedule"
        )
    advice = f"raise {smallest} or lower train.microbatch"
    if microbatches < needed:
        yield (
            f"parallel.pipeline_schedule={schedule} with {stages} stages needs at least {needed} micro-batches a step, "
            f"there {_is_or_are(microbatches)}: {advice}"
        )
    elif schedule == "interleaved" and microbatches % ranks:
        yield (
            f"parallel.pipeline_schedule=interleaved needs a multiple of parallel.pipeline={ranks} micro-batches a step, "
            f"there {_is_or_are(microbatches)}: {advice}"
        )
