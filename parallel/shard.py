"""Sharded data parallelism: FSDP2 over the `parameters` axis, replicated over `replicate` (HSDP)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def shard_model(
    model: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh, *, bf16: bool, keep_gathered: bool = False
) -> None:
    """Shard each block and then the rest of the model, in place. Parameters become DTensors.

    Gradients are summed, not averaged: each rank's loss is already divided by the global token count. In bf16 the sharded
    parameters and the gradient reduction stay fp32; only the gathered parameters and the activations are bf16.

    `keep_gathered` leaves parameters gathered between a forward pass and its backward: a pipeline would gather them again for
    every micro-batch, and torch loses the gradients of parameters that are put away while its schedules that split the backward
    pass (zbv, dualpipev) look for them.

    `mesh` has the axes `replicate` and `parameters`. Over a single rank there is nothing to shard, and the model is left as it
    is unless the cast to bf16 is wanted: FSDP's copies would cost a tenth of a small model's step.
    """
    if mesh["replicate", "parameters"].size() == 1 and not bf16:
        return
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32 if bf16 else None,
        cast_forward_inputs=False,  # rotary angles are inputs of a block and must stay fp32
    )
    sharding_mesh = mesh["replicate", "parameters"] if mesh["replicate"].size() > 1 else mesh["parameters"]
    for module in [*blocks, model]:
        sharded = fully_shard(module, mesh=sharding_mesh, mp_policy=policy, reshard_after_forward=not keep_gathered)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # a factor of one alone needs PREMUL_SUM, which gloo lacks


def local_slice(tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """What this rank holds of a tensor, and where it starts in the whole (one offset per dimension)."""
    if not isinstance(tensor, DTensor):
        return tensor, (0,) * tensor.dim()
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tensor.to_local(), tuple(offset)
