"""Tensor parallelism with sequence-parallel norms, by DTensor, from the roles that a model declares for its submodules.

Outside the split matrix products activations are split by sequence (Korthikanti et al., arXiv 2205.05198): a block gathers
them before its column-split linears and reduce-scatters the output of its row-split one. Every parameter becomes a DTensor;
inputs and outputs of blocks stay plain tensors, as do the logits.
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

Role = Literal["vocabulary", "norm", "gather", "column", "row", "head_norm", "output"]
"""vocabulary: an embedding split by token id, its output by sequence. norm: a norm over a part of the sequence. gather: a
module whose first input is gathered to the whole sequence. column, row: linears split by output and by input. head_norm: a
norm over head_dim, whose input is split by heads. output: a module whose first input is gathered to a plain tensor, which is
multiplied with a weight split by vocabulary."""

SPLIT_DIMS: dict[Role, int] = {"vocabulary": 0, "column": 0, "row": 1}
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
        "output": _GatherFirstInput(local=True),
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
    """Gathers the module's first input, which is split by sequence; the other inputs stay as they are.

    `local`: to a plain tensor, of whose gradient each rank has a term.
    """

    def __init__(self, *, local: bool = False) -> None:
        super().__init__()
        self.local = local

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def gather(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            first = inputs[0]
            if not isinstance(first, DTensor):
                first = DTensor.from_local(first, device_mesh, (Shard(1),), run_check=False)
            whole = first.redistribute(placements=(Replicate(),))
            return whole.to_local(grad_placements=(Partial(),)) if self.local else whole, *inputs[1:]

        module.register_forward_pre_hook(gather)
        return module


def split_tensors(model: nn.Module, roles: Mapping[str, Role], mesh: DeviceMesh) -> None:
    """Split a model over the one-dimensional `mesh`, in place, as its roles say. Does nothing on a mesh of size 1."""
    if mesh.size() == 1:
        return
    parallelize_module(model, mesh, {name: _style(role) for name, role in roles.items()})
    plain = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
    assert not plain, f"no role for {plain}"
