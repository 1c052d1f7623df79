"""Tensor parallelism with sequence-parallel norms, by DTensor, from the roles that a model declares for its submodules.

Outside the split matrix products activations are split by sequence (Korthikanti et al., arXiv 2205.05198): a block gathers
them before its column-split linears and reduce-scatters the output of its row-split one. Every parameter becomes a DTensor;
inputs and outputs of blocks stay plain tensors, as do the logits.

Shape suffixes: T tokens, V this rank's part of the vocabulary.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

Role = Literal["vocabulary", "norm", "gather", "column", "row", "head_norm", "head", "tied_head"]
"""vocabulary: an embedding split by token id, its output by sequence. norm: a norm over a part of the sequence. gather: a
module whose first input is gathered to the whole sequence. column, row: linears split by output and by input. head_norm: a
norm over head_dim, whose input is split by heads. head: logits split by vocabulary. tied_head: the same, with the embedding's
table as an input."""

SPLIT_DIMS: dict[Role, int] = {"vocabulary": 0, "column": 0, "head": 0, "row": 1}
"""The dimension along which a role's weight is split; every rank has the whole weights of the other roles."""


def _style(role: Role) -> ParallelStyle:
    by_sequence, whole = Shard(1), Replicate()
    styles: dict[Role, ParallelStyle] = {
        "vocabulary": _SplitByToken(input_layouts=whole, output_layouts=by_sequence),
        "norm": SequenceParallel(),
        "gather": _GatherFirstInput(),
        "column": ColwiseParallel(),
        "row": _SplitByInput(output_layouts=by_sequence),
        "head_norm": SequenceParallel(sequence_dim=2, use_local_output=True),
        "head": ColwiseParallel(input_layouts=by_sequence),
        "tied_head": _GatherFirstInput(local_output=True),
    }
    return styles[role]


class _SplitByToken(RowwiseParallel):
    """An embedding split by token id, which waits for its reduction to finish: a compiled block whose input is an unfinished
    collective sends the gradient past the DTensor that the input came from (torch 2.13)."""

    @staticmethod
    def _prepare_output_fn(
        output_layouts: Any, use_local_output: bool, module: nn.Module, output: Any, device_mesh: DeviceMesh
    ) -> Any:
        return output.redistribute(placements=output_layouts).to_local()


class _SplitByInput(RowwiseParallel):
    """A linear split by input. Its other parameters are split likewise if they have a column per group of inputs."""

    def _partition_linear_fn(self, name: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        for key, parameter in list(module.named_parameters(recurse=False)):
            place = Shard(1) if parameter.dim() > 1 and parameter.shape[1] > 1 else Replicate()
            split = distribute_tensor(parameter, device_mesh, [place], src_data_rank=self.src_data_rank)
            module.register_parameter(key, nn.Parameter(split))


class _GatherFirstInput(ParallelStyle):
    """Gathers the module's first input, which is split by sequence; the other inputs stay as they are."""

    def __init__(self, *, local_output: bool = False) -> None:
        super().__init__()
        self.local_output = local_output

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def gather(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            first = inputs[0]
            if not isinstance(first, DTensor):
                first = DTensor.from_local(first, device_mesh, (Shard(1),), run_check=False)
            return first.redistribute(placements=(Replicate(),)), *inputs[1:]

        module.register_forward_pre_hook(gather)
        if self.local_output:
            module.register_forward_hook(lambda module, inputs, output: output.to_local())
        return module


def split_tensors(model: nn.Module, roles: Mapping[str, Role], mesh: DeviceMesh) -> None:
    """Split a model over the one-dimensional `mesh`, in place, as its roles say. Does nothing on a mesh of size 1."""
    if mesh.size() == 1:
        return
    parallelize_module(model, mesh, {name: _style(role) for name, role in roles.items()})
    plain = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
    assert not plain, f"no role for {plain}"


def vocabulary_parallel_terms(logits_TV: Tensor, targets_T: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """(log Z (T,), target's logit (T,)) from this rank's part of the logits: rank r of `group` has token ids from r V to below
    (r + 1) V.

    Both are equal on all ranks of `group`; each rank gets the gradient of its own logits. Cross entropy is log Z - target's
    logit (Shoeybi et al., Megatron-LM, arXiv 1909.08053, section 3).
    """
    log_z_T, target_T = _VocabularyTerms.apply(logits_TV, targets_T, group.rank() * logits_TV.shape[1], group)
    return log_z_T, target_T


class _VocabularyTerms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, local_TV: Tensor, targets_T: Tensor, first_id: int, group: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor]:
        largest_T = local_TV.amax(dim=1)
        dist.all_reduce(largest_T, op=dist.ReduceOp.MAX, group=group)
        position_T = targets_T - first_id
        is_local_T = (position_T >= 0) & (position_T < local_TV.shape[1])
        position_T = position_T.clamp(0, local_TV.shape[1] - 1)
        sum_T = (local_TV - largest_T[:, None]).exp_().sum(dim=1)
        target_T = local_TV.gather(1, position_T[:, None])[:, 0] * is_local_T
        sums_2T = torch.stack((sum_T, target_T))
        dist.all_reduce(sums_2T, group=group)
        log_z_T, target_T = sums_2T[0].log() + largest_T, sums_2T[1].clone()
        ctx.save_for_backward(local_TV, log_z_T, position_T, is_local_T)
        return log_z_T, target_T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        log_z_gradient_T, target_gradient_T = gradients
        local_TV, log_z_T, position_T, is_local_T = ctx.saved_tensors
        gradient_TV = (local_TV - log_z_T[:, None]).exp_().mul_(log_z_gradient_T[:, None])
        gradient_TV.scatter_add_(1, position_T[:, None], (target_gradient_T * is_local_T)[:, None])
        return gradient_TV, None, None, None
