"""Makes a model parallel, step by step. The comments say why the steps have this order."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.context.protocol import ContextParallel
from parallel.mesh import Meshes
from parallel.names import Recompute, ScheduleName, stage_count
from parallel.recompute import recompute_blocks
from parallel.shape import ModelShape
from parallel.shard import local_slice, shard_model
from parallel.stages import Part, Stage, cut, rank_of_stage
from parallel.tensor import Role, split_tensors


class StageModel(nn.Module, ABC):
    """One pipeline stage of a model, and what parallelism must know about its submodules.

    Called with (tokens or hidden states, document numbers), it gives hidden states or, as the last stage, this rank's part of
    the logits. With `targets_BS` the last stage gives (objective, cross entropy, number of targets) instead, float64 (3,),
    summed over the targets; only the objective is differentiated.
    """

    @abstractmethod
    def block_list(self) -> Sequence[nn.Module]:
        """The repeated units, which are compiled, sharded and recomputed one by one."""

    @abstractmethod
    def tensor_roles(self) -> Mapping[str, Role]:
        """How tensor parallelism splits each submodule, by name (`*` stands for any layer)."""

    @abstractmethod
    def share_sequences(self, context: ContextParallel) -> None:
        """From now on the stage receives this rank's part of each sequence, but the document numbers of whole sequences."""


BuildStage = Callable[[Stage], StageModel]
"""Builds a stage on the meta device."""

Convert = Callable[[StageModel], Collection[str]]
"""Puts low-precision modules into a stage, in place. Returns the names of the parameters it added."""

Fill = Callable[[str, Tensor, tuple[int, ...], tuple[int, ...]], None]
"""Writes a slice's initial values: (parameter name, local slice, its offset, shape of the whole parameter)."""


@dataclass(frozen=True, kw_only=True)
class Composition:
    """The settings besides the sizes of the mesh axes."""

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
    """Build this rank's stages of a model, make them parallel and initialise them."""
    # Pipeline first: a rank builds only the stages it holds, and every later step sees a smaller model.
    rank, ranks = meshes.axes.get_local_rank("pipeline"), meshes.axes["pipeline"].size()
    num_stages = stage_count(ranks, composition.pipeline_schedule, composition.virtual_stages)
    stages = cut(shape, sequence, num_stages)
    own_stages = [index for index in range(num_stages) if rank_of_stage(index, ranks, composition.pipeline_schedule) == rank]
    models = {index: build_stage(stages[index]) for index in own_stages}

    for model in models.values():
        # Convert before any other change: the later steps must also split, wrap and compile the modules and parameters that
        # low precision adds.
        added = convert(model)
        blocks = model.block_list()

        # Tensor before any wrapping: the later steps wrap what a rank computes, which is its part of each matrix product.
        split_tensors(model, model.tensor_roles(), meshes.parameters["tensor"])

        # Context after tensor: context ranks exchange only the heads that tensor parallelism left on each rank. Before
        # recompute: a recomputed block also repeats the exchange, unless its result is saved.
        if context is not None:
            model.share_sequences(context)

        # Recompute before compile: the compiler then sees the recomputation and fuses it. Not with context parallelism: its
        # exchange is not compiled, which would make the compiler give up on the whole recomputed region.
        if composition.compile and context is not None:
            context.leave_uncompiled()
            for block in blocks:
                block.forward = torch.compile(block.forward)
        recompute_blocks(blocks, composition.recompute)

        # Compile before shard: the all-gathers stay outside the graphs, so one graph serves all blocks and layouts.
        if composition.compile and context is None:
            for block in blocks:
                block.compile()

        # Shard before materialise: parameters on the meta device take no memory, so no rank ever holds a whole one.
        shard_model(model, blocks, meshes.parameters, bf16=composition.bf16, keep_gathered=ranks > 1, replicated=added)

        # Materialise last: only now does each rank know its slices. Initial values depend on global indices only.
        model.to_empty(device=device)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                local, offset = local_slice(parameter)
                fill(name, local, offset, tuple(parameter.shape))
    return [Part(stages[index], model) for index, model in models.items()]
