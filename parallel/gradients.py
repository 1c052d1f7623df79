"""Gradients between the backward pass and the optimizer: completing their sums, their norm, clipping.

Everything works on local slices: reducing a single number gives the norm on every layout, and a few foreach kernels process
many small tensors, instead of one DTensor operation for each.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate


def align_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Bring every gradient into its parameter's placement: the gradient of a replicated weight may still be a partial sum.

    Partial sums over the same ranks are reduced together, because there may be many small ones.
    """
    partial_sums: dict[tuple[DeviceMesh, tuple[int, ...], torch.dtype], list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        gradient = parameter.grad
        if not (isinstance(gradient, DTensor) and isinstance(parameter, DTensor)):
            continue
        pairs = list(zip(gradient.placements, parameter.placements, strict=True))
        axes = tuple(axis for axis, (current, wanted) in enumerate(pairs) if current != wanted)
        if all(pairs[axis] == (Partial(), Replicate()) for axis in axes):
            partial_sums[gradient.device_mesh, axes, gradient.dtype].append(parameter)
        else:
            parameter.grad = gradient.redistribute(placements=parameter.placements)
    for (mesh, axes, _), parameters_to_sum in partial_sums.items():
        if axes:
            _sum_together(parameters_to_sum, [mesh.get_group(axis) for axis in axes])


def _sum_together(parameters: Sequence[nn.Parameter], groups: Sequence[dist.ProcessGroup]) -> None:
    locals_ = [_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([local.flatten() for local in locals_])
    for group in groups:
        dist.all_reduce(flat, group=group)
    for parameter, local, part in zip(parameters, locals_, flat.split([local.numel() for local in locals_]), strict=True):
        assert isinstance(parameter, DTensor)
        parameter.grad = DTensor.from_local(
            part.view(local.shape),
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )


def sum_tied_gradients(
    first: nn.Parameter | None, last: nn.Parameter | None, group: dist.ProcessGroup, peer: int | None
) -> None:
    """Give both copies of a tied weight the sum of their gradients. `peer` is the group rank that holds the other copy."""
    if first is not None and last is not None:
        assert first.grad is not None
        assert last.grad is not None
        first.grad += last.grad
        last.grad = first.grad.clone()
        return
    ours = first if first is not None else last
    if ours is None or peer is None:
        return
    assert ours.grad is not None
    local = _local(ours.grad)
    sent, theirs = local.contiguous(), torch.empty_like(local, memory_format=torch.contiguous_format)
    # The receive is posted first: two sends that wait for each other would never end.
    operations = [
        dist.P2POp(dist.irecv, theirs, group=group, group_peer=peer),
        dist.P2POp(dist.isend, sent, group=group, group_peer=peer),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    local += theirs


def gradient_norm(gradients: Sequence[Tensor], device: torch.device, replicas: int = 1) -> Tensor:
    """l2 norm of the whole gradient, equal on every rank of the default group. A collective.

    `gradients` are this rank's slices, in their final placements. The squares of a slice that several ranks hold are divided by
    their number: a DTensor says on how many ranks of its mesh it is, and there are `replicas` of each mesh.
    """
    squares = torch.zeros((), device=device)
    by_copies: dict[int, list[Tensor]] = {}
    for gradient in gradients:
        by_copies.setdefault(_copies(gradient), []).append(_local(gradient))
    for copies, local in by_copies.items():
        norms = torch.stack(torch._foreach_norm(local))
        squares = squares + norms.square().sum() / (copies * replicas)
    dist.all_reduce(squares)
    return squares.sqrt()


def clip(gradients: Sequence[Tensor], norm: Tensor, largest: float) -> None:
    """Scale gradients of l2 norm `norm` down to norm `largest`, in place; a smaller norm stays as it is."""
    torch._foreach_mul_([_local(gradient) for gradient in gradients], (largest / (norm + 1e-6)).clamp(max=1.0))


def _copies(tensor: Tensor) -> int:
    """How many ranks hold the same slice."""
    if not isinstance(tensor, DTensor):
        return 1
    mesh = tensor.device_mesh
    return math.prod(mesh.size(axis) for axis, place in enumerate(tensor.placements) if isinstance(place, Replicate))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
