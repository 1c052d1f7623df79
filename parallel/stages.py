"""Where a pipeline cuts a model, and which rank holds which stage."""

from dataclasses import dataclass

from torch import nn

from parallel.cut import balanced_sizes
from parallel.names import V_SHAPED, ScheduleName
from parallel.shape import ModelShape


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline: consecutive layers. The first stage also has the embedding, the last one the head."""

    index: int
    layers: range
    first: bool
    last: bool


@dataclass(frozen=True)
class Part:
    """A stage, and this rank's module of it."""

    stage: Stage
    module: nn.Module


def cut(shape: ModelShape, sequence: int, num_stages: int) -> list[Stage]:
    """Cut a decoder into stages so that the costliest stage has as few FLOPs as possible.

    Layers and the head count; the embedding, a table look-up, has no FLOPs. Every stage has at least one layer.
    """
    stages, start = [], 0
    for index, size in enumerate(balanced_sizes(shape, sequence, num_stages)):
        stages.append(Stage(index, range(start, start + size), index == 0, index == num_stages - 1))
        start += size
    return stages


def rank_of_stage(stage: int, num_ranks: int, schedule: ScheduleName) -> int:
    """Which pipeline rank holds a stage: in a loop over the ranks or, under V-shaped schedules, down the ranks and back up."""
    if schedule in V_SHAPED and stage >= num_ranks:
        return 2 * num_ranks - 1 - stage
    return stage % num_ranks
