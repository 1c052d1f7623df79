"""What a rank does in a test of context parallelism."""

import math
import random
from unittest import mock

import torch
import torch.distributed as dist

from parallel.attention import plan
from parallel.context.local import Transfers
from parallel.context.protocol import ContextParallel
from parallel.mesh import World
from tests.support.group import Group


def tensors(batch, heads, kv_heads, sequence, head_dim, seed) -> list[torch.Tensor]:
    """Query, key, value and the gradient of the output, of the whole sequence, float64."""
    draw = torch.Generator().manual_seed(seed)
    sizes = [heads, kv_heads, kv_heads, heads]
    return [torch.randn(batch, number, sequence, head_dim, generator=draw, dtype=torch.float64) for number in sizes]


def dense(query, key, value, gradient, documents, causal, scale) -> list[torch.Tensor]:
    """Output and gradients of plain attention over the whole sequence, in float64."""
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    group = query.shape[1] // key.shape[1]
    expanded = [leaves[0], *(leaf.repeat_interleave(group, dim=1) for leaf in leaves[1:])]
    allowed = documents[:, :, None] == documents[:, None, :]
    allowed = (allowed.tril() if causal else allowed)[:, None]
    scores = (expanded[0] @ expanded[1].mT * scale).masked_fill(~allowed, float("-inf"))
    output = scores.softmax(dim=-1) @ expanded[2]
    output.backward(gradient)
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def packed(sequence: int, median: int, seed: int) -> torch.Tensor:
    """Documents of log-normal lengths, a row (1, sequence) of their numbers."""
    draw, ids = random.Random(seed), []
    while len(ids) < sequence:
        ids += [ids[-1] + 1 if ids else 0] * max(1, round(median * draw.lognormvariate(0, 1.2)))
    return torch.tensor(ids[:sequence])[None]


def attend(world: World, runs: list[dict]) -> list[list[float]]:
    """For every run the largest error of output and gradients on this rank's tokens, relative to the largest value."""
    return [
        [float((found - expected).abs().max() / largest) for found, expected, largest in _attend(world, **run)] for run in runs
    ]


def mean_squares(world: World, runs: list[dict]) -> list[list[tuple[float, float]]]:
    """For every run the mean squares of the error and of the value, of output and gradients on this rank's tokens."""
    return [
        [
            (float((found - expected).square().mean()), float(expected.square().mean()))
            for found, expected, _ in _attend(world, **run)
        ]
        for run in runs
    ]


def relative_errors(group: Group, methods, sequence, head_dim=64) -> dict[str, list[float]]:
    """Method -> root mean square error over root mean square value of output and gradients, in bf16."""
    what = {"partition": "zigzag", "shape": (1, 8, 2, sequence, head_dim), "documents": [0] * sequence, "causal": True}
    runs = [{"method": method, "dtype": "bfloat16", "seed": 0} | what for method in methods]
    by_rank = group.run(mean_squares, runs)
    found = {}
    for method, of_ranks in zip(methods, zip(*by_rank, strict=True), strict=True):
        found[method] = [
            math.sqrt(sum(error for error, _ in quantity) / sum(value for _, value in quantity))
            for quantity in zip(*of_ranks, strict=True)
        ]
    return found


def _attend(
    world, method, partition, shape, documents, causal, dtype, seed, short=plan.SHORT
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(found, expected, largest value anywhere) of output and gradients, on this rank's tokens."""
    plan.SHORT = short
    plan._plan.cache_clear()
    batch, _, _, sequence, head_dim = shape
    whole = [tensor.to(world.device) for tensor in tensors(*shape, seed)]
    documents = torch.tensor(documents, device=world.device).expand(batch, sequence)
    scale = head_dim**-0.5
    rounded = [tensor.to(getattr(torch, dtype)).double() for tensor in whole]  # what both sides start from
    expected = dense(*rounded, documents, causal, scale)
    context = ContextParallel(dist.group.WORLD, method, partition)
    parts = context.partition(documents, causal=causal)
    mine = [parts.take(tensor.transpose(1, 2), world.rank).transpose(1, 2).to(getattr(torch, dtype)) for tensor in whole]
    leaves = [tensor.clone().requires_grad_() for tensor in mine[:3]]
    output = context.attend(*leaves, parts, scale)
    output.backward(mine[3])
    found = [output.detach().double(), *(leaf.grad.double() for leaf in leaves)]
    theirs = [parts.take(tensor.transpose(1, 2), world.rank).transpose(1, 2) for tensor in expected]
    return list(zip(found, theirs, [tensor.abs().max() for tensor in expected], strict=True))


def bytes_sent(world: World, runs: list[dict]) -> list[list[list[dict[int, int]]]]:
    """For every run, forward and backward: step by step, rank of the group -> bytes this rank sends it."""
    return [_bytes_sent(world, **run) for run in runs]


def _bytes_sent(world, method, shape, dtype="float32", causal=True) -> list[list[dict[int, int]]]:
    steps: list[dict[int, int]] = []
    posting: dict[int, int] = {}
    add, post = Transfers.add, Transfers.post

    def counted_add(self, tensors, to, received, source):
        posting[to] = posting.get(to, 0) + sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        add(self, tensors, to, received, source)

    def counted_post(self):
        steps.append({to: size for to, size in posting.items() if size})
        posting.clear()
        return post(self)

    batch, _, _, sequence, head_dim = shape
    documents = torch.zeros(batch, sequence, dtype=torch.int64, device=world.device)
    context = ContextParallel(dist.group.WORLD, method, "zigzag" if causal else "contiguous")
    parts = context.partition(documents, causal=causal)
    whole = [tensor.to(world.device) for tensor in tensors(*shape, seed=1)]
    mine = [parts.take(tensor.transpose(1, 2), world.rank).transpose(1, 2) for tensor in whole]
    query, key, value, gradient = (tensor.to(world.device, getattr(torch, dtype)) for tensor in mine)
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    with mock.patch.object(Transfers, "add", counted_add), mock.patch.object(Transfers, "post", counted_post):
        output = context.attend(*leaves, parts, head_dim**-0.5)
        forward = list(steps)
        steps.clear()
        output.backward(gradient)
    return [forward, steps]
