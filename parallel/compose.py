"""The order in which a model is made parallel. One page; the order is the content."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from parallel.mesh import Meshes
from parallel.shard import local_slice, shard_model
from parallel.tensor import Role, split_tensors

Fill = Callable[[str, Tensor, tuple[int, ...], tuple[int, ...]], None]
"""Writes a slice's initial values: (parameter name, local slice, its offset, shape of the whole)."""


def compose(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    roles: Mapping[str, Role],
    meshes: Meshes,
    *,
    device: torch.device,
    compile_blocks: bool,
    bf16: bool,
    fill: Fill,
) -> None:
    """Turn a model on the meta device into this rank's part of it, initialised, in place.

    `blocks` are the model's repeated units, `roles` says how tensor parallelism splits its submodules.
    """
    # Tensor first of all: the later steps wrap what a rank computes, and what it computes is its part of each product.
    split_tensors(model, roles, meshes.parameters["tensor"])

    # Compile before shard: the all-gathers stay outside the graphs, so one graph serves every block and every layout.
    if compile_blocks:
        for block in blocks:
            block.compile()

    # Shard before materialise: on the meta device a parameter costs nothing, so no rank ever holds a whole one.
    shard_model(model, blocks, meshes.parameters, bf16=bf16)

    # Materialise last: only now does every rank know its slices, and values depend on global indices alone.
    model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            local, offset = local_slice(parameter)
            fill(name, local, offset, tuple(parameter.shape))
