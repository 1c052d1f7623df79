"""What a rank does in the tests of meshes and sharding."""

import time
from typing import Any

import torch
from torch import nn

from parallel.layout import Layout
from parallel.mesh import World, build_meshes
from parallel.shard import local_slice, shard_model
from train.loop.memory import LiveBytes


def mesh_views(world: World, sizes: dict[str, int]) -> dict[str, Any]:
    """Names, sizes and this rank's coordinate in each view."""
    meshes = build_meshes(Layout(**sizes), world.device)
    views = {"axes": meshes.axes, "parameters": meshes.parameters, "data": meshes.data}
    seen: dict[str, Any] = {
        name: (mesh.mesh_dim_names, tuple(mesh.mesh.shape), tuple(mesh.get_coordinate() or ())) for name, mesh in views.items()
    }
    return seen | {"data_rank": meshes.data_rank}


def local_slices(world: World, sizes: dict[str, int]) -> list[bool]:
    """Whether every slice is the part of the whole that its offset says; the rows divide among no number of ranks."""
    meshes = build_meshes(Layout(**sizes), world.device)
    model = nn.Sequential(nn.Linear(3, 7), nn.Linear(7, 5, bias=False), nn.LayerNorm(1))
    whole = {name: torch.arange(p.numel(), dtype=p.dtype).view(p.shape) for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(whole[name])
    shard_model(model, list(model), meshes.parameters, bf16=False)
    right = []
    for name, parameter in model.named_parameters():
        local, offset = local_slice(parameter)
        index = tuple(slice(start, start + size) for start, size in zip(offset, local.shape, strict=True))
        right.append(torch.equal(local, whole[name][index]))
        right.append(tuple(parameter.shape) == tuple(whole[name].shape))
    return right


def fsdp_memory(world: World) -> tuple[int, int, int]:
    """(peak, still alive afterwards, bytes of the shards) of a forward and backward through four sharded linears."""
    width, layers = 256, 4
    model = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(layers)])
    meshes = build_meshes(Layout(shard=world.size), world.device)
    shard_model(model, list(model), meshes.parameters, bf16=False)
    live = LiveBytes(model.parameters())
    shards = live.current
    original = torch.UntypedStorage.resize_
    for _ in range(2):
        with live:
            model(torch.ones(1, width)).sum().backward()
    assert torch.UntypedStorage.resize_ is original
    deadline = time.monotonic() + 5
    while live.current > 2 * shards and time.monotonic() < deadline:
        time.sleep(0.01)  # gloo's threads may hold what they have sent a moment longer
    return live.peak, live.current, shards
