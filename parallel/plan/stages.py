"""What each pipeline rank holds, how many micro-batches it keeps in flight, and how long the pipeline takes to fill."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from parallel.cut import balanced_sizes
from parallel.names import V_SHAPED, stage_count
from parallel.plan.job import Job
from parallel.plan.recipe import Cut
from parallel.shape import ModelShape


@dataclass(frozen=True)
class Content:
    """What a pipeline rank holds: layers, over all of its stages, and the two ends of the model."""

    layers: int
    embedding: bool
    head: bool
    loss: bool
    """where logits become a loss: with the head, but nanotron may put it on the next rank"""


def contents(job: Job) -> tuple[Content, ...]:
    """What every pipeline rank of a job holds."""
    choice = job.choice
    stages = stage_count(choice.pipeline, choice.pipeline_schedule, choice.virtual_stages)
    return _contents(job.shape, job.sequence, choice.pipeline, stages, choice.pipeline_schedule in V_SHAPED, job.recipe.cut)


@cache
def _contents(shape: ModelShape, sequence: int, ranks: int, stages: int, v_shaped: bool, how: Cut) -> tuple[Content, ...]:
    if ranks == 1:
        return (Content(shape.num_layers, True, True, True),)
    if how == "threshold":
        return _threshold(shape, ranks)
    if how == "balanced":
        sizes: Sequence[int] = balanced_sizes(shape, sequence, stages)
    else:
        sizes = [shape.num_layers // stages + (index < shape.num_layers % stages) for index in range(stages)]
    layers = [0] * ranks
    for index, size in enumerate(sizes):
        layers[2 * ranks - 1 - index if v_shaped and index >= ranks else index % ranks] += size
    last = 0 if v_shaped else ranks - 1
    return tuple(Content(count, rank == 0, rank == last, rank == last) for rank, count in enumerate(layers))


def _threshold(shape: ModelShape, ranks: int) -> tuple[Content, ...]:
    """A stage closes with the block at which the cost so far reaches its share: nanotron's rule, whose costs are the products
    of full attention heads and a gated feed-forward, and the head."""
    layer = 4 * shape.hidden_size**2 + 3 * shape.ffn_size * shape.hidden_size
    head = shape.vocab_size * shape.hidden_size
    total, cost, rank = shape.num_layers * layer + head, 0, 0
    layers, head_rank = [0] * ranks, ranks - 1
    for block in range(shape.num_layers + 1):
        if block < shape.num_layers:
            layers[rank] += 1
            cost += layer
        else:
            head_rank = rank
        if rank + 1 < ranks and cost * ranks >= total * (rank + 1) - 1e-6 * total:
            rank += 1
    # The head closes its stage too, so what follows it, at no counted cost, comes to the next rank.
    loss_rank = min(head_rank + 1, ranks - 1)
    return tuple(Content(count, index == 0, index == head_rank, index == loss_rank) for index, count in enumerate(layers))


def in_flight(job: Job, rank: int) -> float:
    """Micro-batches whose activations a pipeline rank keeps at its peak, in units of all of the rank's layers.

    gpipe keeps all. 1F1B: p - rank (Narayanan et al., arXiv 2104.04473, section 2.2). Interleaved: 2 (p - rank - 1) + (v - 1)
    p + 1 chunks of 1/v of the layers, which on rank 0 is p (1 + (p - 1) / (p v)) (Korthikanti et al., arXiv 2205.05198,
    section 4). zbv: as many bytes as 1F1B's first rank, on every rank (Qi et al., arXiv 2401.10241, section 4); dualpipev one
    chunk more, and so is torch's zbv, which starts the next chunk before the weight gradients let go of the last one.
    """
    choice, count = job.choice, job.microbatches
    ranks, chunks = choice.pipeline, choice.virtual_stages
    if ranks == 1:
        return 1.0
    if choice.pipeline_schedule == "gpipe":
        return float(count)
    if choice.pipeline_schedule == "interleaved":
        # torch's schedule begins the next chunk before it lets go of the last one.
        ahead = 2 if job.recipe.own else 1
        return min(count * chunks, 2 * (ranks - rank - 1) + (chunks - 1) * ranks + ahead) / chunks
    if choice.pipeline_schedule == "zbv":
        return min(count, ranks + 0.5) if job.recipe.own else float(min(count, ranks))
    if choice.pipeline_schedule == "dualpipev":
        return min(count, ranks + 0.5)
    return float(min(count, ranks - rank))


def fill_share(job: Job) -> float:
    """Share of a pass through all ranks that a step waits: 1 for gpipe and 1F1B, 1/v interleaved (Narayanan et al., section
    2.2).

    V-shaped schedules fill the gap with weight gradients: zbv leaves none where forward, input-gradient and weight-gradient
    times are equal (Qi et al., section 4); dualpipev keeps about half of 1F1B's with the halves of its stages overlapped.
    """
    schedule = job.choice.pipeline_schedule
    if schedule == "interleaved":
        return 1.0 / job.choice.virtual_stages
    return {"zbv": 0.0, "dualpipev": 0.5}.get(schedule, 1.0)


def pipeline_seconds(job: Job, seconds: Sequence[float]) -> float:
    """Seconds of a step's passes, given a micro-batch's on every rank: the slowest rank's for each, and the fill."""
    slowest = max(seconds)
    return job.microbatches * slowest + fill_share(job) * (sum(seconds) - slowest)
