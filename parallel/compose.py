"""The order in which a model is made parallel. One page; the order is the content."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.context.protocol import ContextParallel
from parallel.mesh import Meshes
from parallel.names import Recompute, ScheduleName, stage_count
from parallel.pipeline import Part, Stage, cut, rank_of_stage
from parallel.recompute import recompute_blocks
from parallel.shape import ModelShape
from parallel.shard import local_slice, shard_model
from parallel.tensor import Role, split_tensors


class StageModel(nn.Module, ABC):
    """What a model hands over of one stage: itself, and what its submodules are."""

    @abstractmethod
    def block_list(self) -> Sequence[nn.Module]:
        """The repeated units: what is compiled, sharded and recomputed one by one."""

    @abstractmethod
    def tensor_roles(self) -> Mapping[str, Role]:
        """How tensor parallelism splits each submodule, by name (`*` stands for any layer)."""

    @abstractmethod
    def share_sequences(self, context: ContextParallel) -> None:
        """From now on the stage is given this rank's part of every sequence, beside the documents of the whole."""


BuildStage = Callable[[Stage], StageModel]
"""Builds a stage on the meta device."""

Convert = Callable[[StageModel], Collection[str]]
"""Puts low-precision modules into a stage, in place. Returns the names of the parameters it has added."""

Fill = Callable[[str, Tensor, tuple[int, ...], tuple[int, ...]], None]
"""Writes a slice's initial values: (parameter name, local slice, its offset, shape of the whole)."""


@dataclass(frozen=True, kw_only=True)
class Composition:
    """The choices that are not sizes of axes."""

    pipeline_schedule: ScheduleName
    virtual_stages: int
    recompute: Recompute
    compile: bool
    bf16: bool


def compose(
    shape: ModelShape,
    sequence: int,
    build_stage: BuildStage,
    meshes: Meshes,
    composition: Composition,
    *,
    device: torch.device,
    fill: Fill,
    convert: Convert = lambda model: (),
    context: ContextParallel | None = None,
) -> list[Part]:
    """This rank's stages of a model, made parallel and initialised."""
    # Pipeline first: a rank builds only the stages it holds, and every later step sees a smaller model.
    rank, ranks = meshes.axes.get_local_rank("pipeline"), meshes.axes["pipeline"].size()
    num_stages = stage_count(ranks, composition.pipeline_schedule, composition.virtual_stages)
    stages = cut(shape, sequence, num_stages)
    mine = [index for index in range(num_stages) if rank_of_stage(index, ranks, composition.pipeline_schedule) == rank]
    models = {index: build_stage(stages[index]) for index in mine}

    for model in models.values():
        # Convert before all else that is done to modules: the later steps split, wrap and compile what is there, the
        # parameters that low precision adds included.
        added = convert(model)
        blocks = model.block_list()

        # Tensor before all wrapping: the later steps wrap what a rank computes, and that is its part of each product.
        split_tensors(model, model.tensor_roles(), meshes.parameters["tensor"])

        # Context after tensor: what its ranks exchange is the heads that tensor has left to each. Before recompute: what is
        # computed again includes the exchange, unless that is kept.
        if context is not None:
            model.share_sequences(context)

        # Recompute before compile: the compiler then sees what is computed again and fuses it. Not where a block exchanges
        # with context ranks: compilers leave that alone, and give up on all that is computed again around it.
        if composition.compile and context is not None:
            for block in blocks:
                block.forward = torch.compile(block.forward)
        recompute_blocks(blocks, composition.recompute)

        # Compile before shard: the all-gathers stay outside the graphs, so one graph serves every block and every layout.
        if composition.compile and context is None:
            for block in blocks:
                block.compile()

        # Shard before materialise: on the meta device a parameter costs nothing, so no rank ever holds a whole one.
        shard_model(model, blocks, meshes.parameters, bf16=composition.bf16, keep_gathered=ranks > 1, whole=added)

        # Materialise last: only now does every rank know its slices, and values depend on global indices alone.
        model.to_empty(device=device)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                local, offset = local_slice(parameter)
                fill(name, local, offset, tuple(parameter.shape))
    return [Part(stages[index], model) for index, model in models.items()]
