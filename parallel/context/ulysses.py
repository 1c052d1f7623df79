"""Ulysses: every rank computes a part of the heads over the whole sequence (Jacobs et al., arXiv 2309.14509).

One exchange turns "all heads of my tokens" into "my heads of all tokens"; another turns the outputs back. With more ranks than
key/value heads, a key/value head goes to every rank that has queries for it.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.context.local import TOKENS, LocalAttention, Transfers, zeros_like
from parallel.context.names import heads_divide
from parallel.context.partition import Partition
from parallel.recompute import compute_or_reuse

HEADS = 1


def ulysses_attention(
    query: Tensor, key: Tensor, value: Tensor, partition: Partition, scale: float, group: dist.ProcessGroup
) -> Tensor:
    """Attention of this rank's queries to the keys of all ranks. All tensors (B, heads, s, D); a collective."""
    ranks = group.size()
    order = torch.cat([partition.positions(chunks) for chunks in partition.owners]).to(query.device)
    needed = heads_of_ranks(query.shape[HEADS], key.shape[HEADS], ranks, query.device)
    back = order.argsort()
    whole_query, whole_key, whole_value = (
        _gather_tokens(tensor, group).index_select(TOKENS, back) for tensor in (query, key[:, needed], value[:, needed])
    )
    attended: Tensor = _Attention.apply(whole_query, whole_key, whole_value, LocalAttention(partition, scale))
    return _gather_heads(attended.index_select(TOKENS, order), group)


def heads_of_ranks(num_heads: int, num_kv_heads: int, ranks: int, device: torch.device) -> Tensor:
    """The key/value heads that the query heads of each rank need, rank after rank; equally many for each.

    Raises:
        ValueError: the heads do not divide among the ranks.
    """
    if not heads_divide(num_heads, num_kv_heads, ranks):
        raise ValueError(f"{num_heads} query and {num_kv_heads} key/value heads do not divide among {ranks} ranks")
    each, group = max(1, num_kv_heads // ranks), num_heads // num_kv_heads
    first = [rank * (num_heads // ranks) // group for rank in range(ranks)]
    return torch.tensor([head + number for head in first for number in range(each)], device=device)


def _gather_tokens(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(B, P h, s, D) of all ranks' heads to (B, h, P s, D): this rank's heads of all tokens, rank after rank."""
    ranks = group.size()
    by_rank = torch.stack(tensor.chunk(ranks, dim=HEADS))
    return torch.cat(list(_AllToAll.apply(by_rank, group)), dim=TOKENS)


def _gather_heads(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The inverse of `_gather_tokens`: (B, h, P s, D) to (B, P h, s, D)."""
    ranks = group.size()
    by_rank = torch.stack(tensor.chunk(ranks, dim=TOKENS))
    return torch.cat(list(_AllToAll.apply(by_rank, group)), dim=HEADS)


class _Attention(torch.autograd.Function):
    """Attention over whole sequences on one rank, without ever holding the mask of a whole sequence."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, local: LocalAttention) -> Tensor:
        every = tuple(range(local.partition.num_chunks))
        output, lse = compute_or_reuse(lambda: local.forward(query, every, key, value, every))
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.local, ctx.every = local, every
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        totals = zeros_like(lse.dtype, query, key, value)
        ctx.local.backward(gradient, query, output, lse, ctx.every, key, value, ctx.every, *totals[1:], totals[0])
        return totals[0].to(query.dtype), totals[1].to(key.dtype), totals[2].to(value.dtype), None


class _AllToAll(torch.autograd.Function):
    """Sends slice r of the first dimension to rank r, and puts what rank r sends into slice r. Its own inverse and transpose.

    Gloo's own all-to-all posts its sends first, so a link carries one direction after the other, in nearly twice the time.
    """

    @staticmethod
    def forward(ctx: Any, by_rank: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group

        def exchange() -> tuple[Tensor]:
            rank, ranks = group.rank(), group.size()
            received = torch.empty_like(by_rank, memory_format=torch.contiguous_format)
            received[rank] = by_rank[rank]
            transfers = Transfers(group)
            for distance in range(1, ranks):
                to, source = (rank + distance) % ranks, (rank - distance) % ranks
                transfers.add([by_rank[to]], to, [received[source]], source)
            transfers.post().wait()
            return (received,)

        (received,) = compute_or_reuse(exchange)
        return received

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _AllToAll.apply(gradient, ctx.group), None
