"""Losses whose vocabulary is split over ranks; run on every rank of a group."""

from typing import Any

import torch
import torch.distributed as dist

from parallel.batch import IGNORE
from parallel.mesh import World
from train.model.loss import loss_sums


def numbers(vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states (2, 9, 6), a weight (vocabulary, 6) and targets, some of them without one."""
    generator = torch.Generator().manual_seed(vocabulary)
    hidden = torch.randn(2, 9, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocabulary, (2, 9), generator=generator)
    targets[0, 3:5] = IGNORE
    return hidden, weight, targets


def sums_and_gradients(world: World, vocabulary: int, z_loss: float, chunk: int) -> list[Any]:
    """(sums, gradient of the hidden states, summed over the ranks, gradient of this rank's part of the weight)."""
    hidden, weight, targets = numbers(vocabulary)
    part = weight.chunk(world.size)[world.rank].clone().requires_grad_()
    hidden.requires_grad_()
    group = dist.group.WORLD
    assert group is not None
    sums = loss_sums(hidden, part, targets, z_loss=z_loss, group=group, chunk=chunk)
    (0.25 * sums[0]).backward()
    assert hidden.grad is not None
    assert part.grad is not None
    dist.all_reduce(hidden.grad)
    return [tensor.numpy() for tensor in (sums.detach(), hidden.grad, part.grad)]
