"""When every pipeline rank does what in a step: each works through its schedule's order as soon as its inputs are there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from parallel.names import V_SHAPED, stage_count
from parallel.plan.job import Job
from parallel.plan.stages import contents
from parallel.plan.step_time import rank_parts, step_parts

DRAWN = 16
"""micro-batches at most"""


@dataclass(frozen=True)
class Bar:
    """What a pipeline rank does from `start` on, in seconds. `what`: forward, backward, weights, reduction, optimizer."""

    rank: int
    what: str
    start: float
    seconds: float


def timeline(job: Job) -> list[Bar]:
    """The bars of a step, with at most 16 micro-batches (or two per stage, if that is more)."""
    choice = job.choice
    ranks = choice.pipeline
    stages = stage_count(ranks, choice.pipeline_schedule, choice.virtual_stages)
    count = min(job.microbatches, max(DRAWN, 2 * ranks))
    short = replace(job, batch_sequences=count * choice.data_parallel * choice.microbatch)
    seconds = [sum(rank_parts(short, content).values()) for content in contents(short)]
    chunks = stages // ranks
    orders = [list(_order(choice.pipeline_schedule, rank, ranks, chunks, count)) for rank in range(ranks)]
    bars = _play(orders, seconds, stages, ranks, choice.pipeline_schedule in V_SHAPED)
    end = max(bar.start + bar.seconds for bar in bars)
    parts = step_parts(short)
    for rank in range(ranks):
        if parts["reduction"] > 0:
            bars.append(Bar(rank, "reduction", end, parts["reduction"]))
        bars.append(Bar(rank, "optimizer", end + parts["reduction"], parts["optimizer"]))
    return bars


def _order(schedule: str, rank: int, ranks: int, chunks: int, count: int) -> Iterator[tuple[str, int, int]]:
    """(forward or backward, chunk, micro-batch) in a rank's order."""
    forwards = [(chunk, micro) for chunk, micro in _interleave(ranks, chunks, count)]
    backwards = [(chunks - 1 - chunk, micro) for chunk, micro in forwards]
    if schedule == "gpipe":
        warm = len(forwards)
    elif chunks == 1:
        warm = min(count, ranks - rank - 1)
    elif schedule in V_SHAPED:
        warm = min(len(forwards), 2 * ranks - rank - 1)
    else:
        warm = min(len(forwards), 2 * (ranks - rank - 1) + (chunks - 1) * ranks)
    for chunk, micro in forwards[:warm]:
        yield "forward", chunk, micro
    for (chunk, micro), (back, older) in zip(forwards[warm:], backwards, strict=False):
        yield "forward", chunk, micro
        yield "backward", back, older
    for chunk, micro in backwards[len(forwards) - warm :]:
        yield "backward", chunk, micro


def _interleave(ranks: int, chunks: int, count: int) -> Iterator[tuple[int, int]]:
    """As many micro-batches as ranks through a chunk, then through the next."""
    for start in range(0, count, ranks):
        for chunk in range(chunks):
            for micro in range(start, min(start + ranks, count)):
                yield chunk, micro


def _play(orders: list[list[tuple[str, int, int]]], seconds: list[float], stages: int, ranks: int, v_shaped: bool) -> list[Bar]:
    """Every rank does the first of its list whose input is there; V-shaped schedules may take a later one."""
    chunks = stages // ranks

    def stage(rank: int, chunk: int) -> int:
        if v_shaped and chunk == 1:
            return 2 * ranks - 1 - rank
        return chunk * ranks + rank

    done: dict[tuple[str, int, int], float] = {}
    clocks, bars = [0.0] * ranks, []
    waiting = [list(order) for order in orders]
    while any(waiting):
        moved = False
        for rank in sorted(range(ranks), key=lambda rank: clocks[rank]):
            reach = len(waiting[rank]) if v_shaped else min(1, len(waiting[rank]))
            for place in range(reach):
                what, chunk, micro = waiting[rank][place]
                own = stage(rank, chunk)
                before = ("forward", own - 1, micro) if what == "forward" else ("backward", own + 1, micro)
                if what == "backward" and own == stages - 1:
                    before = ("forward", own, micro)
                if what == "backward" and ("forward", own, micro) not in done:
                    continue
                if not (what == "forward" and own == 0) and before not in done:
                    continue
                share = (1 / 3 if what == "forward" else 2 / 3) / chunks
                start = max(clocks[rank], done.get(before, 0.0))
                clocks[rank] = start + share * seconds[rank]
                done[what, own, micro] = clocks[rank]
                bars.append(Bar(rank, what, start, share * seconds[rank]))
                del waiting[rank][place]
                moved = True
                break
        if not moved:
            break
    return bars
