"""Where a pipeline cuts a model, and which rank holds which stage."""

from dataclasses import dataclass

from torch import nn

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
    assert 1 <= num_stages <= shape.num_layers
    layer, head = shape.layer_flops_per_token(sequence), shape.head_flops_per_token()
    # All layers cost the same, so the optimum is: the last stage has k layers and the head, the others share the rest evenly.
    best: tuple[float, int] | None = None
    if num_stages > 1:
        for last_layers in range(1, shape.num_layers - num_stages + 2):
            largest = -(-(shape.num_layers - last_layers) // (num_stages - 1)) * layer
            cost = max(largest, last_layers * layer + head)
            if best is None or cost < best[0] or (cost == best[0] and last_layers * layer + head <= largest):
                best = (cost, last_layers)
    sizes = [shape.num_layers] if best is None else [*_even(shape.num_layers - best[1], num_stages - 1), best[1]]
    stages, start = [], 0
    for index, size in enumerate(sizes):
        stages.append(Stage(index, range(start, start + size), index == 0, index == num_stages - 1))
        start += size
    return stages


def _even(total: int, parts: int) -> list[int]:
    return [total // parts + (index < total % parts) for index in range(parts)]


def rank_of_stage(stage: int, num_ranks: int, schedule: ScheduleName) -> int:
    """Which pipeline rank holds a stage: in a loop over the ranks or, under V-shaped schedules, down the ranks and back up."""
    if schedule in V_SHAPED and stage >= num_ranks:
        return 2 * num_ranks - 1 - stage
    return stage % num_ranks
