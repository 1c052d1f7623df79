"""TokenRing: queries travel one way round the ring, partial results go straight back (Wang et al., arXiv 2412.20501).

Keys and values never move, and neither do their gradients. At step t rank r has the queries of rank r + t; what it finds for
them is sent at step t + 1, while the next block is computed and the next queries arrive. Queries that no rank behind needs stay
where they are: under a causal mask and zigzag that makes half of the messages half as long.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.context.local import Accumulator, LocalAttention, Transfers, add_into, room, select, zeros_like
from parallel.context.partition import Chunks
from parallel.recompute import kept


def token_ring_attention(query: Tensor, key: Tensor, value: Tensor, local: LocalAttention, group: dist.ProcessGroup) -> Tensor:
    """Attention of this rank's queries to everybody's keys. All tensors (B, heads, s, D); a collective."""
    output: Tensor = _TokenRing.apply(query, key, value, local, group)
    return output


class _TokenRing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, local: LocalAttention, group: dist.ProcessGroup) -> Tensor:
        output, lse = kept(partial(_attend, query, key, value, local, group))
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
        done: tuple[Chunks, list[Tensor]] = ((), [])
        for step in range(ranks + 1):
            transfers = Transfers(group)
            incoming = _pass_on(local, rank, step, *held, transfers)
            returned = _give_back(local, rank, step, done, transfers, [query])
            transfers.post()
            if step < ranks:
                chunks, (its_query, its_gradient, its_lse, its_delta) = held
                rows = local.rows(chunks, mine)
                (found,) = zeros_like(lse.dtype, its_query)
                if rows:
                    its_output = output if step == 0 else stand_in(its_gradient, its_delta)
                    local.backward(its_gradient, its_query, its_output, its_lse, chunks, key, value, mine, *totals[1:], found)
                done = (rows, [select(found, chunks, rows).to(query.dtype)] if rows else [])
                if step == 0:
                    totals[0] += found
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
    done: tuple[Chunks, list[Tensor]] = ((), [])  # what was found at the step before, for its owner
    for step in range(ranks + 1):
        transfers = Transfers(group)
        incoming = _pass_on(local, rank, step, *held, transfers)
        returned = _give_back(local, rank, step, done, transfers, [query, total.lse_BHs])
        transfers.post()
        if step < ranks:
            chunks, (its_query,) = held
            rows = local.rows(chunks, mine)
            done = (rows, list(local.forward(its_query, chunks, key, value, mine)) if rows else [])
            if step == 0 and rows:
                total.merge(rows, *done[1])
        transfers.wait()
        if returned[0]:
            total.merge(returned[0], *returned[1])
        held = incoming
    return total.output_BHsD.to(query.dtype), total.lse_BHs


def stand_in(gradient_BHsD: Tensor, delta_BHs: Tensor) -> Tensor:
    """An output whose product with the gradient, summed over D, is `delta`.

    That product is all that a block's backward asks of the output, and one number a query travels in place of D.
    """
    wide = gradient_BHsD.to(delta_BHs.dtype)
    largest = wide.abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(wide.dtype).tiny)
    unit = wide / largest  # so that the squares of small gradients do not vanish
    share = delta_BHs[..., None] / largest / unit.square().sum(dim=-1, keepdim=True).clamp_min(0.5)
    return (unit * share).to(gradient_BHsD.dtype)


def _travelling(local: LocalAttention, origin: int, step: int) -> Chunks:
    """Which of a rank's chunks of queries still travel at a step, because its holder or a later one has keys for them."""
    owners, ranks = local.partition.owners, local.partition.ranks
    later: set[int] = set()
    for at in range(step, ranks):
        later.update(local.rows(owners[origin], owners[(origin - at) % ranks]))
    return tuple(sorted(later))


def _pass_on(
    local: LocalAttention, rank: int, step: int, chunks: Chunks, tensors: Sequence[Tensor], transfers: Transfers
) -> tuple[Chunks, list[Tensor]]:
    """Queries, and what goes with them, on to rank - 1; returns those from rank + 1, once the transfers are done."""
    ranks = local.partition.ranks
    if step + 1 >= ranks:
        return (), []
    sent = _travelling(local, (rank + step) % ranks, step + 1)
    received = _travelling(local, (rank + step + 1) % ranks, step + 1)
    buffers = [room(tensor, received, local.partition) for tensor in tensors] if received else []
    transfers.add(
        [select(tensor, chunks, sent) for tensor in tensors] if sent else [], (rank - 1) % ranks, buffers, (rank + 1) % ranks
    )
    return received, buffers or [tensor[:, :, :0] for tensor in tensors]


def _give_back(
    local: LocalAttention,
    rank: int,
    step: int,
    done: tuple[Chunks, list[Tensor]],
    transfers: Transfers,
    like: Sequence[Tensor],
) -> tuple[Chunks, list[Tensor]]:
    """What was found at the step before to the owner of its queries; returns what another rank has found for this one's."""
    if step < 2:
        return (), []
    owners, ranks = local.partition.owners, local.partition.ranks
    owner, helper = (rank + step - 1) % ranks, (rank - step + 1) % ranks
    received = local.rows(owners[rank], owners[helper])
    buffers = [room(tensor, received, local.partition) for tensor in like] if received else []
    transfers.add(done[1], owner, buffers, helper)
    return received, buffers
