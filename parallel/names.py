"""The names in a configuration's layout, and what follows from them, without torch. Standard library only."""

from typing import Literal

DeviceName = Literal["auto", "cpu", "cuda"]
"""What computes; cuda is also AMD's. auto: GPUs where there are any."""

ScheduleName = Literal["gpipe", "1f1b", "interleaved", "zbv", "dualpipev"]
"""Order of the micro-batches in a pipeline."""

SINGLE_STAGE: tuple[ScheduleName, ...] = ("gpipe", "1f1b")
"""Schedules with one stage on a rank."""
V_SHAPED: tuple[ScheduleName, ...] = ("zbv", "dualpipev")
"""Schedules with two stages on a rank: stages run down the ranks and back up. They split the backward pass in two."""

Recompute = Literal["none", "selective", "full"]
"""none: save all activations. selective: save the results of matrix products, attention and communication, recompute the cheap
rest. full: save only the inputs of blocks."""


KernelName = Literal["auto", "fused", "plain"]
"""What computes attention. fused: torch's kernel for the device, which holds no scores. plain: the formula, a thousand queries
at a time, on any device and in any dtype. auto: fused where the device has it."""


def stage_count(num_ranks: int, schedule: ScheduleName, virtual_stages: int) -> int:
    """Stages in a pipeline: one per rank; under the interleaved schedule `virtual_stages` per rank, under V-shaped ones two."""
    per_rank = 1 if schedule in SINGLE_STAGE else 2 if schedule in V_SHAPED else virtual_stages
    return 1 if num_ranks == 1 else num_ranks * per_rank


def fewest_microbatches(num_ranks: int, schedule: ScheduleName, virtual_stages: int) -> int:
    """The fewest micro-batches a step may have under a schedule."""
    if schedule == "gpipe":
        return 1
    return num_ranks if schedule == "interleaved" else stage_count(num_ranks, schedule, virtual_stages)
