"""All layouts of a number of devices, the best of them, and the nearest change that makes a layout fit. Standard library
only."""

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from common.errors import UserError
from parallel.names import V_SHAPED, Recompute, ScheduleName, fewest_microbatches, stage_count
from parallel.plan.forecast import Forecast, forecast, memory_in_gib
from parallel.plan.job import Choice, Job
from parallel.plan.memory import capacity_gib, fit_chance
from parallel.plan.step_time import step_parts

LEVELS: tuple[Recompute, ...] = ("none", "selective", "full")
MICROBATCHES = (1, 2, 4, 8, 16, 32, 64)


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    small = [value for value in range(1, math.isqrt(number) + 1) if number % value == 0]
    return sorted({*small, *(number // value for value in small)})


def problem(job: Job) -> str | None:
    """Why a layout is impossible, in a line; None where it is possible. Whether it fits is another question."""
    shape, choice, sequence = job.shape, job.choice, job.sequence
    tensor, context = choice.tensor, choice.context
    for size, name in ((shape.num_heads, "query heads"), (shape.num_kv_heads, "key/value heads"), (shape.ffn_size, "ffn_size")):
        if size % tensor and not (name == "key/value heads" and tensor % size == 0 and job.recipe.cut != "balanced"):
            return f"tensor={tensor} does not divide {size} {name}"
    if shape.vocab_size % tensor:
        return f"tensor={tensor} does not divide a vocabulary of {shape.vocab_size}"
    if choice.sequence_parallel and tensor > 1 and (sequence // context) % tensor:
        return f"tensor={tensor} does not divide {sequence // context} tokens of a sequence"
    if context > 1 and (not job.recipe.context or sequence % (2 * context)):
        return f"context={context}: " + (
            "the recipe has none" if not job.recipe.context else f"{sequence} tokens do not divide"
        )
    if job.batch_sequences % (choice.data_parallel * choice.microbatch):
        return (
            f"{job.batch_sequences} sequences are not a multiple of replicate x shard x microbatch = "
            f"{choice.data_parallel * choice.microbatch}"
        )
    return _pipeline_problem(job)


def _pipeline_problem(job: Job) -> str | None:
    choice, layers = job.choice, job.shape.num_layers
    schedule, ranks = choice.pipeline_schedule, choice.pipeline
    if ranks == 1:
        return None if choice.virtual_stages == 1 else "virtual_stages needs pipeline > 1"
    if schedule not in job.recipe.schedules:
        return f"recipe {job.recipe.name} has no schedule {schedule} (it has {', '.join(job.recipe.schedules)})"
    stages = stage_count(ranks, schedule, choice.virtual_stages)
    if stages > layers:
        return f"pipeline={ranks} makes {stages} stages of {layers} layers"
    if schedule == "interleaved" and (choice.virtual_stages < 2 or (job.recipe.cut == "even" and layers % stages)):
        return f"virtual_stages={choice.virtual_stages} x pipeline={ranks} does not divide {layers} layers"
    if schedule == "interleaved" and job.microbatches % ranks:
        return f"{job.microbatches} micro-batches are not a multiple of pipeline={ranks}, which interleaving needs"
    fewest = fewest_microbatches(ranks, schedule, choice.virtual_stages)
    if job.recipe.cut == "balanced" and job.microbatches < fewest:
        return f"{schedule} needs {fewest} micro-batches, there are {job.microbatches}"
    return None


def layouts(job: Job, devices: int, fixed: Mapping[str, Any]) -> Iterator[Job]:
    """Every possible layout of `devices` that keeps what is `fixed`, without regard to memory, and without recomputation."""
    for tensor in _options(fixed, "tensor", _tensors(job, devices)):
        if devices % tensor or job.shape.num_heads % tensor:
            continue
        for pipeline in _options(fixed, "pipeline", divisors(devices // tensor)):
            if (devices // tensor) % pipeline or pipeline > job.shape.num_layers:
                continue
            rest = devices // (tensor * pipeline)
            for context in _options(fixed, "context", _contexts(job, rest)):
                if rest % context:
                    continue
                for replicate, shard, zero in _data(job, rest // context, context, tensor, fixed):
                    for schedule, virtual in _schedules(job, pipeline, fixed):
                        axes = Choice(
                            replicate=replicate,
                            shard=shard,
                            tensor=tensor,
                            pipeline=pipeline,
                            context=context,
                            pipeline_schedule=schedule,
                            virtual_stages=virtual,
                            zero=zero,
                            sequence_parallel=job.recipe.sequence_parallel,
                        )
                        yield from _with_microbatches(job, axes, fixed)


def _with_microbatches(job: Job, axes: Choice, fixed: Mapping[str, Any]) -> Iterator[Job]:
    for microbatch in _options(fixed, "microbatch", MICROBATCHES):
        candidate = replace(job, choice=replace(axes, microbatch=microbatch))
        if problem(candidate) is None:
            yield candidate
        elif microbatch * axes.data_parallel > job.batch_sequences:
            return


def _options(fixed: Mapping[str, Any], key: str, otherwise: Any) -> Any:
    return (fixed[key],) if key in fixed else otherwise


def _tensors(job: Job, devices: int) -> list[int]:
    """Tensor sizes whose groups stay inside a node, and the job's own.

    Every block waits for a tensor group's messages, which the links between nodes carry several times more slowly (Narayanan et
    al., arXiv 2104.04473, takeaway 1; the sweep's rows over several nodes are slower still than links explain).
    """
    node = job.hardware.node_devices
    return [size for size in divisors(devices) if devices <= node or node % size == 0 or size == job.choice.tensor]


def _contexts(job: Job, rest: int) -> list[int]:
    """Context sizes worth a look: powers of two, while a rank keeps 2,048 tokens or more."""
    if not job.recipe.context:
        return [1]
    return [size for size in divisors(rest) if size & (size - 1) == 0 and (size == 1 or job.sequence // size >= 2048)]


def _data(job: Job, ranks: int, context: int, tensor: int, fixed: Mapping[str, Any]) -> Iterator[tuple[int, int, int]]:
    """(replicate, shard, zero): all data ranks share the states, or as many as a node holds, or none does."""
    if "zero" in fixed:
        stages = [int(fixed["zero"])]
    else:
        stages = [stage for stage in job.recipe.states if stage in (0, job.recipe.zero)]
    seen = set()
    for zero in stages:
        if ranks * context == 1 and zero and 0 in job.recipe.states and "zero" not in fixed:
            continue
        inside = max(1, job.hardware.node_devices // (tensor * context))
        shards = [1] if zero == 0 else [ranks, math.gcd(inside, ranks)]
        for shard in _options(fixed, "shard", shards):
            if ranks % shard:
                continue
            replicate = ranks // shard
            if fixed.get("replicate", replicate) == replicate and (replicate, shard, zero) not in seen:
                seen.add((replicate, shard, zero))
                yield replicate, shard, zero


def _schedules(job: Job, pipeline: int, fixed: Mapping[str, Any]) -> Iterator[tuple[ScheduleName, int]]:
    if pipeline == 1:
        yield "1f1b", 1
        return
    wanted = _options(fixed, "pipeline_schedule", job.recipe.schedules)
    for schedule in wanted:
        if schedule == "interleaved":
            per_rank = job.shape.num_layers // pipeline
            few = [count for count in divisors(per_rank) if 1 < count <= 8] or [2]
            for virtual in _options(fixed, "virtual_stages", few):
                yield schedule, virtual
        elif schedule in V_SHAPED or fixed.get("virtual_stages", 1) == 1:
            yield schedule, 1


def search(job: Job, devices: int, fixed: Mapping[str, Any], top: int) -> list[Forecast]:
    """The `top` fastest layouts that fit, best first; if none fits, those that need least memory.

    One that barely fits may not: its speed counts times the chance that it does. Of equally fast ones the simplest comes
    first, that with the most data ranks.

    Recomputation is the least that makes a layout fit, unless fixed: more of it only costs time.

    Raises:
        UserError: no layout of that many devices is possible.
    """
    found: list[tuple[float, int, int, Job]] = []
    wanting: list[tuple[float, int, int, Job]] = []
    number, room = 0, capacity_gib(job)
    for base in layouts(job, devices, fixed):
        number += 1
        for level in _options(fixed, "recompute", LEVELS):
            candidate = replace(base, choice=replace(base.choice, recompute=level))
            total = memory_in_gib(candidate)["total"]
            if total <= room:
                seconds = step_parts(candidate)["total"] / fit_chance(candidate, total)
                heapq.heappush(found, (-_rounded(seconds), candidate.choice.data_parallel, number, candidate))
                break
            order = number * 4 + LEVELS.index(level)
            heapq.heappush(wanting, (-_rounded(total), candidate.choice.data_parallel, order, candidate))
        for heap in (found, wanting):
            if len(heap) > top:
                heapq.heappop(heap)
    if not number:
        raise UserError(impossible(job, devices, fixed))
    best = sorted(found or wanting, reverse=True)
    return [forecast(candidate) for *_, candidate in best]


def _rounded(value: float) -> float:
    """What differs in the sixth digit alone differs by rounding."""
    return float(f"{value:.6g}")


def impossible(job: Job, devices: int, fixed: Mapping[str, Any]) -> str:
    """Why there is no layout, and the nearest number of devices or the nearest wish that has one."""
    words = ", ".join(f"{key}={value}" for key, value in fixed.items()) or "any"
    lines = [f"no layout ({words}) of {devices} devices for {job.batch_sequences} sequences of {job.sequence} tokens"]
    wished = Choice(**{**{"shard": 1, "sequence_parallel": job.recipe.sequence_parallel}, **fixed})
    axes = wished.gpus
    if devices % axes:
        lines.append(f"the axes make {axes} devices, which does not divide {devices}")
    elif (why := problem(replace(job, choice=wished))) is not None:
        lines.append(why)
    near = sorted((abs(count - devices), count) for count in range(max(1, devices - 64), devices + 65) if count != devices)
    for _, count in near:
        if next(layouts(job, count, fixed), None) is not None:
            lines.append(f"{count} devices have one: --gpus {count}")
            break
    for key in fixed:
        others = {name: value for name, value in fixed.items() if name != key}
        values = {getattr(candidate.choice, key) for candidate in layouts(job, devices, others)}
        if values:
            nearest = min(values, key=lambda value: _distance(value, fixed[key]))
            lines.append(f"{key}={nearest} instead of {key}={fixed[key]} has one")
            break
    return "\n".join(lines)


def _distance(value: Any, wished: Any) -> float:
    numbers = isinstance(value, int) and isinstance(wished, int) and value > 0 and wished > 0
    return abs(math.log2(value / wished)) if numbers else 0.0


def nearest_that_fits(job: Job, devices: int) -> Forecast | None:
    """The layout that fits with the fewest changes to the job's own, the fastest among equally near ones; None if none fits.

    A change is a doubling or halving of an axis or of the micro-batch, one level of recomputation, another ZeRO stage or
    schedule.
    """
    wished = job.choice
    best: tuple[float, float, Job] | None = None
    room = capacity_gib(job)
    for base in layouts(job, devices, {}):
        for level in LEVELS[LEVELS.index(wished.recompute) :]:
            candidate = replace(base, choice=replace(base.choice, recompute=level))
            distance = changes(wished, candidate.choice)
            if (best is not None and distance > best[0]) or memory_in_gib(candidate)["total"] > room:
                continue
            seconds = step_parts(candidate)["total"]
            if best is None or (distance, seconds) < best[:2]:
                best = distance, seconds, candidate
    return forecast(best[2]) if best else None


def changes(one: Choice, other: Choice) -> float:
    """How many changes lead from one layout to another."""
    axes = ("tensor", "pipeline", "context", "microbatch", "virtual_stages", "data_parallel")
    doubled = sum(abs(math.log2(getattr(one, axis) / getattr(other, axis))) for axis in axes)
    # What data ranks there are follows from the other axes, and counts half.
    doubled -= 0.5 * abs(math.log2(one.data_parallel / other.data_parallel))
    levels = abs(LEVELS.index(one.recompute) - LEVELS.index(other.recompute))
    return doubled + levels + (one.zero != other.zero) + (one.pipeline_schedule != other.pipeline_schedule)
