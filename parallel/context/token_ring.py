"""TokenRing: queries travel one way round the ring, partial results go straight back (Wang et al., arXiv 2412.20501).

Keys and values never move, and neither do their gradients. At step t rank r has the queries of rank r + t. It sends their
results at step t + 1, while it computes the next block and the next queries arrive. Queries are not sent on if no later rank
needs them: under a causal mask and zigzag this makes half of the messages half as long.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.context.local import Accumulator, LocalAttention, Transfers, add_into, empty_chunks, select, zeros_like
from parallel.context.partition import Chunks
from parallel.recompute import compute_or_reuse


def token_ring_attention(query: Tensor, key: Tensor, value: Tensor, local: LocalAttention, group: dist.ProcessGroup) -> Tensor:
    """Attention of this rank's queries to the keys of all ranks. All tensors (B, heads, s, D); a collective."""
    output: Tensor = _TokenRing.apply(query, key, value, local, group)
    return output


class _TokenRing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, local: LocalAttention, group: dist.ProcessGroup) -> Tensor:
        output, lse = compute_or_reuse(partial(_attend, query, key, value, local, group))
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.local, ctx.group = local, group
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        local, group = ctx.local, ctx.group
        rank, ranks = group.rank(), group.size()
        mine = local.partition.owners[rank]
        totals = zeros_like(lse.dtype, query, key, value)
        delta = (gradient.to(lse.dtype) * output.to(lse.dtype)).sum(dim=-1)
        held: tuple[Chunks, list[Tensor]] = (mine, [query, gradient, lse, delta])
        results: tuple[Chunks, list[Tensor]] = ((), [])
        for step in range(ranks + 1):
            transfers = Transfers(group)
            incoming = _transfer_queries(local, rank, step, *held, transfers)
            returned = _transfer_results(local, rank, step, results, transfers, [query])
            transfers.post()
            if step < ranks:
                chunks, (its_query, its_gradient, its_lse, its_delta) = held
                rows = local.rows(chunks, mine)
                (query_gradient,) = zeros_like(lse.dtype, its_query)
                if rows:
                    its_output = output if step == 0 else surrogate_output(its_gradient, its_delta)
                    local.backward(
                        its_gradient, its_query, its_output, its_lse, chunks, key, value, mine, *totals[1:], query_gradient
                    )
                results = (rows, [select(query_gradient, chunks, rows).to(query.dtype)] if rows else [])
                if step == 0:
                    totals[0] += query_gradient
            transfers.wait()
            if returned[0]:
                add_into(totals[0], mine, returned[1][0], returned[0])
            held = incoming
        return totals[0].to(query.dtype), totals[1].to(key.dtype), totals[2].to(value.dtype), None, None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, local: LocalAttention, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """(output, log-sum-exp) of this rank's queries."""
    rank, ranks = group.rank(), group.size()
    mine = local.partition.owners[rank]
    total = Accumulator.empty(query, mine)
    held: tuple[Chunks, list[Tensor]] = (mine, [query])
    results: tuple[Chunks, list[Tensor]] = ((), [])  # of the previous step, for the owner of the queries
    for step in range(ranks + 1):
        transfers = Transfers(group)
        incoming = _transfer_queries(local, rank, step, *held, transfers)
        returned = _transfer_results(local, rank, step, results, transfers, [query, total.lse_BHs])
        transfers.post()
        if step < ranks:
            chunks, (its_query,) = held
            rows = local.rows(chunks, mine)
            results = (rows, list(local.forward(its_query, chunks, key, value, mine)) if rows else [])
            if step == 0 and rows:
                total.merge(rows, *results[1])
        transfers.wait()
        if returned[0]:
            total.merge(returned[0], *returned[1])
        held = incoming
    return total.output_BHsD.to(query.dtype), total.lse_BHs


def surrogate_output(gradient_BHsD: Tensor, delta_BHs: Tensor) -> Tensor:
    """An output whose product with the gradient, summed over D, is `delta`.

    The backward pass of a block needs nothing else of the output, so ranks send one number per query instead of D.
    """
    gradient = gradient_BHsD.to(delta_BHs.dtype)
    largest = gradient.abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    unit = gradient / largest  # so that the squares of small gradients do not underflow
    share = delta_BHs[..., None] / largest / unit.square().sum(dim=-1, keepdim=True).clamp_min(0.5)
    return (unit * share).to(gradient_BHsD.dtype)


def _travelling(local: LocalAttention, origin: int, step: int) -> Chunks:
    """The chunks of queries of rank `origin` that still travel at a step: its holder or a later one has keys that they see."""
    owners, ranks = local.partition.owners, local.partition.ranks
    needed: set[int] = set()
    for later in range(step, ranks):
        needed.update(local.rows(owners[origin], owners[(origin - later) % ranks]))
    return tuple(sorted(needed))


def _transfer_queries(
    local: LocalAttention, rank: int, step: int, chunks: Chunks, tensors: Sequence[Tensor], transfers: Transfers
) -> tuple[Chunks, list[Tensor]]:
    """Add queries, and what goes with them, to the transfers to rank - 1. Returns buffers for those from rank + 1."""
    ranks = local.partition.ranks
    if step + 1 >= ranks:
        return (), []
    sent = _travelling(local, (rank + step) % ranks, step + 1)
    received = _travelling(local, (rank + step + 1) % ranks, step + 1)
    buffers = [empty_chunks(tensor, received, local.partition) for tensor in tensors] if received else []
    transfers.add(
        [select(tensor, chunks, sent) for tensor in tensors] if sent else [], (rank - 1) % ranks, buffers, (rank + 1) % ranks
    )
    return received, buffers or [tensor[:, :, :0] for tensor in tensors]


def _transfer_results(
    local: LocalAttention,
    rank: int,
    step: int,
    results: tuple[Chunks, list[Tensor]],
    transfers: Transfers,
    like: Sequence[Tensor],
) -> tuple[Chunks, list[Tensor]]:
    """Add the previous step's results to the transfers to the owner of the queries. Returns buffers for the results of this
    rank's queries."""
    if step < 2:
        return (), []
    owners, ranks = local.partition.owners, local.partition.ranks
    owner, helper = (rank + step - 1) % ranks, (rank - step + 1) % ranks
    received = local.rows(owners[rank], owners[helper])
    buffers = [empty_chunks(tensor, received, local.partition) for tensor in like] if received else []
    transfers.add(results[1], owner, buffers, helper)
    return received, buffers
