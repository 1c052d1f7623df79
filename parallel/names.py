"""The words of a layout that a configuration must know without torch, and what follows from them. Standard library only."""

from typing import Literal

EngineName = Literal["native"]
"""Each is a module of `parallel.engine`."""

ScheduleName = Literal["gpipe", "1f1b", "interleaved", "zbv", "dualpipev"]
"""Order of the micro-batches in a pipeline."""

SINGLE_STAGE: tuple[ScheduleName, ...] = ("gpipe", "1f1b")
"""Schedules with one stage on a rank."""
V_SHAPED: tuple[ScheduleName, ...] = ("zbv", "dualpipev")
"""Schedules with two stages on a rank, there and back. They split the backward pass in two."""

Recompute = Literal["none", "selective", "full"]
"""none: keep everything. selective: keep what matrix products, attention and communication made, compute the cheap rest again.
full: keep a block's input alone."""


def stage_count(num_ranks: int, schedule: ScheduleName, virtual_stages: int) -> int:
    """Stages of a pipeline: one per rank; under the interleaved schedule `virtual_stages` each, under V-shaped ones two."""
    per_rank = 1 if schedule in SINGLE_STAGE else 2 if schedule in V_SHAPED else virtual_stages
    return 1 if num_ranks == 1 else num_ranks * per_rank


def fewest_microbatches(num_ranks: int, schedule: ScheduleName, virtual_stages: int) -> int:
    """Micro-batches that a step needs at least to fill the pipeline."""
    if schedule == "gpipe":
        return 1
    return num_ranks if schedule == "interleaved" else stage_count(num_ranks, schedule, virtual_stages)
