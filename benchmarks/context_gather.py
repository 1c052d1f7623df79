"""A baseline for the methods of context parallelism: every rank gathers all keys and values, then attends."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.context.local import Accumulator, LocalAttention, Transfers


def gathered_attention(query: Tensor, key: Tensor, value: Tensor, local: LocalAttention, group: dist.ProcessGroup) -> Tensor:
    """Attention of this rank's queries to the keys of all ranks. All tensors (B, heads, s, D); a collective.

    The gathered keys and values are saved for the backward pass, which sends their gradients to their owners in fp32.
    """
    output: Tensor = _Gathered.apply(query, key, value, local, group)
    return output


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, local: LocalAttention, group: dist.ProcessGroup) -> Tensor:
        owners, mine = local.partition.owners, local.partition.owners[group.rank()]
        gathered = _exchange([[key, value]] * group.size(), group)
        total = Accumulator.empty(query, mine)
        for chunks, (its_key, its_value) in zip(owners, gathered, strict=True):
            if rows := local.rows(mine, chunks):
                total.merge(rows, *local.forward(query, mine, its_key, its_value, chunks))
        output = total.output_BHsD.to(query.dtype)
        ctx.save_for_backward(query, output, total.lse_BHs, *(tensor for pair in gathered for tensor in pair))
        ctx.local, ctx.group = local, group
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, output, lse, *flat = ctx.saved_tensors
        owners, mine = ctx.local.partition.owners, ctx.local.partition.owners[ctx.group.rank()]
        sums = [torch.zeros_like(tensor, dtype=lse.dtype, memory_format=torch.contiguous_format) for tensor in (query, *flat)]
        parts = [sums[1 + 2 * rank : 3 + 2 * rank] for rank in range(len(owners))]
        for rank, chunks in enumerate(owners):
            if ctx.local.rows(mine, chunks):
                key, value = flat[2 * rank : 2 * rank + 2]
                ctx.local.backward(gradient, query, output, lse, mine, key, value, chunks, *parts[rank], sums[0])
        of_ranks = _exchange(parts, ctx.group)
        key_gradient, value_gradient = (
            torch.stack(tensors).sum(dim=0).to(query.dtype) for tensors in zip(*of_ranks, strict=True)
        )
        return sums[0].to(query.dtype), key_gradient, value_gradient, None, None


def _exchange(to: list[list[Tensor]], group: dist.ProcessGroup) -> list[list[Tensor]]:
    """The tensors that every rank has sent to this one, by rank; `to` has those for every rank."""
    rank, ranks = group.rank(), group.size()
    received = [
        to[rank] if source == rank else [torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in to[source]]
        for source in range(ranks)
    ]
    transfers = Transfers(group)
    for distance in range(1, ranks):
        target, source = (rank + distance) % ranks, (rank - distance) % ranks
        transfers.add(to[target], target, received[source], source)
    transfers.post().wait()
    return received
