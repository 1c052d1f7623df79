"""Sharded data parallelism: FSDP2 over the `parameters` axis, replicated over `replicate` (HSDP)."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import Placement


def is_sharded(mesh: DeviceMesh, *, bf16: bool) -> bool:
    """Whether `shard_model` changes a model. In full precision it leaves whole replicas as they are."""
    return mesh["parameters"].size() > 1 or bf16


def shard_model(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    mesh: DeviceMesh,
    *,
    bf16: bool,
    keep_gathered: bool = False,
    replicated: Collection[str] = (),
) -> None:
    """Shard each block and then the rest of the model, in place. Parameters become DTensors.

    Gradients are summed, not averaged: each rank's loss is already divided by the global token count. With `bf16` the
    sharded parameters and the gradient reduction stay fp32; only gathered parameters and activations are bf16.

    `keep_gathered` leaves parameters gathered between a forward pass and its backward pass. A pipeline would otherwise gather
    them for every micro-batch, and its schedules with a backward pass in two parts (zbv, dualpipev) would lose the gradients of
    parameters that were resharded in between.

    The parameters named in `replicated` are not sharded: every data rank holds them, in their own dtype, as DTensors whose
    gradients are still partial sums. FSDP would cast them to bf16 like all others.

    `mesh` has the axes `replicate`, `parameters` and `tensor`. Where every rank has whole parameters there is nothing to shard,
    and the model stays as it is (see `parallel.replicas` for its gradients) unless `bf16` asks for the cast: FSDP's copies
    would cost a tenth of a small model's step.
    """
    if not is_sharded(mesh, bf16=bf16):
        return
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32 if bf16 else None,
        cast_forward_inputs=False,  # rotary angles are inputs of a block and must stay fp32
    )
    sharding_mesh = mesh["replicate", "parameters"] if mesh["replicate"].size() > 1 else mesh["parameters"]
    ignored = _replicate(model, replicated, mesh)
    for module in [*blocks, model]:
        sharded = fully_shard(
            module, mesh=sharding_mesh, mp_policy=policy, reshard_after_forward=not keep_gathered, ignored_params=ignored
        )
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # else a factor of 1 needs PREMUL_SUM, which gloo lacks


def _replicate(model: nn.Module, names: Collection[str], mesh: DeviceMesh) -> set[nn.Parameter]:
    """Replicate parameters over the data axes of `mesh`, in place, and keep their split over `tensor`. Returns the new ones."""
    new_parameters = set()
    for name in names:
        owner, _, key = name.rpartition(".")
        parameter = model.get_parameter(name)
        local: Tensor = parameter.data
        axes: tuple[str, ...] = ("replicate", "parameters")
        placements: list[Placement] = [Replicate(), Replicate()]
        if isinstance(local, DTensor):
            axes, placements, local = (*axes, "tensor"), [*placements, *local.placements], local.to_local()
        distributed = DTensor.from_local(
            local, mesh[axes], placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
        )
        model.get_submodule(owner).register_parameter(key, nn.Parameter(distributed))
        new_parameters.add(model.get_parameter(name))
    return new_parameters


def local_slice(tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """This rank's slice of a tensor, and where it starts in the whole tensor (one offset per dimension)."""
    if not isinstance(tensor, DTensor):
        return tensor, (0,) * tensor.dim()
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tensor.to_local(), tuple(offset)
