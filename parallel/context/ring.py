"""Ring attention: keys and values travel round the ring, queries stay (Liu et al., arXiv 2310.01889).

In one direction, or half of the chunks each way. A chunk travels only as far as somebody needs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.context.local import Accumulator, LocalAttention, Transfers, add_into, room, select, zeros_like
from parallel.context.partition import Chunks
from parallel.recompute import kept


@dataclass(frozen=True)
class Stream:
    """Some of every rank's chunks, travelling in one direction: to rank + 1 or to rank - 1."""

    start: int
    stop: int
    direction: int

    def chunks(self, local: LocalAttention, rank: int) -> Chunks:
        """Those that start from a rank."""
        return local.partition.owners[rank][self.start : self.stop]

    def origin(self, local: LocalAttention, rank: int, step: int) -> int:
        """Whose chunks a rank has after so many steps."""
        return (rank - self.direction * step) % local.partition.ranks

    def travelling(self, local: LocalAttention, origin: int, step: int) -> Chunks:
        """Which of a rank's chunks still travel at a step, because the holder of that step or a later one needs them."""
        owners, ranks = local.partition.owners, local.partition.ranks
        later: set[int] = set()
        for at in range(step, ranks):
            later.update(local.columns(owners[(origin + self.direction * at) % ranks], self.chunks(local, origin)))
        return tuple(sorted(later))

    def used(self, local: LocalAttention, origin: int, step: int) -> Chunks:
        """Which of a rank's chunks others have used in the steps 1 to `step`: their gradients are on the way home."""
        owners, ranks = local.partition.owners, local.partition.ranks
        found: set[int] = set()
        for at in range(1, step + 1):
            found.update(local.columns(owners[(origin + self.direction * at) % ranks], self.chunks(local, origin)))
        return tuple(sorted(found))


def streams(num_chunks: int, *, bidirectional: bool) -> list[Stream]:
    """Of a rank's chunks: all of them one way, or the first half one way and the second half the other."""
    half = num_chunks // 2
    if bidirectional and half:
        return [Stream(0, half, 1), Stream(half, num_chunks, -1)]
    return [Stream(0, num_chunks, 1)]


def ring_attention(
    query: Tensor, key: Tensor, value: Tensor, local: LocalAttention, group: dist.ProcessGroup, *, bidirectional: bool
) -> Tensor:
    """Attention of this rank's queries to everybody's keys. All tensors (B, heads, s, D); a collective."""
    ways = streams(len(local.partition.owners[0]), bidirectional=bidirectional)
    output: Tensor = _Ring.apply(query, key, value, local, group, ways)
    return output


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        local: LocalAttention,
        group: dist.ProcessGroup,
        ways: Sequence[Stream],
    ) -> Tensor:
        output, lse = kept(partial(_attend, query, key, value, local, group, ways))
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.local, ctx.group, ctx.ways = local, group, ways
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        local, group, ways = ctx.local, ctx.group, ctx.ways
        rank, ranks = group.rank(), group.size()
        mine = local.partition.owners[rank]
        totals = zeros_like(lse.dtype, query, key, value)
        held = [_start(way, local, rank, mine, (key, value)) for way in ways]
        homeward: list[tuple[Chunks, list[Tensor]]] = [((), []) for _ in ways]
        for step in range(ranks):
            transfers, incoming, arriving = Transfers(group), [], []
            for way, (chunks, tensors), (used, sums) in zip(ways, held, homeward, strict=True):
                incoming.append(_pass_on(way, local, rank, step, chunks, tensors, transfers))
                arriving.append(_carry(way, local, rank, step, used, sums, transfers, like=totals[1]))
            transfers.post()
            if step == 0:
                local.backward(gradient, query, output, lse, mine, key, value, mine, *totals[1:], totals[0])
            for number, (chunks, (its_key, its_value)) in enumerate(held if step else []):
                found = zeros_like(lse.dtype, its_key, its_value)
                if local.rows(mine, chunks):
                    local.backward(gradient, query, output, lse, mine, its_key, its_value, chunks, *found, totals[0])
                held[number] = (chunks, found)
            transfers.wait()
            if step:
                homeward = [
                    _add_up(way, local, rank, step, found, arrived, like=totals[1])
                    for way, found, arrived in zip(ways, held, arriving, strict=True)
                ]
            held = incoming
        transfers, arriving = Transfers(group), []
        for way, (used, sums) in zip(ways, homeward, strict=True):
            arriving.append(_carry(way, local, rank, ranks, used, sums, transfers, like=totals[1]))
        transfers.post().wait()
        for used, sums in arriving:
            for total, part in zip(totals[1:], sums, strict=False):
                add_into(total, mine, part, used)
        return totals[0].to(query.dtype), totals[1].to(key.dtype), totals[2].to(value.dtype), None, None, None


Held = tuple[Chunks, list[Tensor]]


def _start(way: Stream, local: LocalAttention, rank: int, mine: Chunks, tensors: Sequence[Tensor]) -> Held:
    chunks = way.chunks(local, rank)
    return chunks, [select(tensor, mine, chunks) for tensor in tensors]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, local: LocalAttention, group: dist.ProcessGroup, ways: Sequence[Stream]
) -> tuple[Tensor, Tensor]:
    """(output, log-sum-exp) of this rank's queries."""
    rank, ranks = group.rank(), group.size()
    mine = local.partition.owners[rank]
    total = Accumulator.empty(query, mine)
    held = [_start(way, local, rank, mine, (key, value)) for way in ways]
    for step in range(ranks):
        transfers, incoming = Transfers(group), []
        for way, (chunks, tensors) in zip(ways, held, strict=True):
            incoming.append(_pass_on(way, local, rank, step, chunks, tensors, transfers))
        transfers.post()
        # The rank's own keys in one call, whatever travels which way: the kernels know this mask.
        for chunks, (its_key, its_value) in held if step else [(mine, [key, value])]:
            if rows := local.rows(mine, chunks):
                total.merge(rows, *local.forward(query, mine, its_key, its_value, chunks))
        transfers.wait()
        held = incoming
    return total.output_BHsD.to(query.dtype), total.lse_BHs


def _pass_on(
    way: Stream, local: LocalAttention, rank: int, step: int, chunks: Chunks, tensors: Sequence[Tensor], transfers: Transfers
) -> Held:
    """Keys and values on to the next rank; returns those that come from the one before, once the transfers are done."""
    ranks = local.partition.ranks
    if step + 1 == ranks:
        return (), []
    sent = way.travelling(local, way.origin(local, rank, step), step + 1)
    received = way.travelling(local, way.origin(local, rank, step + 1), step + 1)
    buffers = [room(tensor, received, local.partition) for tensor in tensors] if received else []
    transfers.add(
        [select(tensor, chunks, sent) for tensor in tensors] if sent else [], (rank + way.direction) % ranks,
        buffers, (rank - way.direction) % ranks,
    )  # fmt: skip
    return received, buffers or [tensor[:, :, :0] for tensor in tensors]


def _carry(
    way: Stream,
    local: LocalAttention,
    rank: int,
    step: int,
    used: Chunks,
    sums: Sequence[Tensor],
    transfers: Transfers,
    like: Tensor,
) -> Held:
    """The sums of gradients as they were after the step before, on to the next rank, after the last step to their home."""
    ranks = local.partition.ranks
    if step < 2:
        return (), []
    received = way.used(local, way.origin(local, rank, step), step - 1)
    buffers = [room(like, received, local.partition) for _ in range(2)] if received else []
    transfers.add(sums, (rank + way.direction) % ranks, buffers, (rank - way.direction) % ranks)
    return received, buffers


def _add_up(way: Stream, local: LocalAttention, rank: int, step: int, found: Held, arrived: Held, like: Tensor) -> Held:
    """This step's gradients of others' keys and values join the sum on its way home."""
    used = way.used(local, way.origin(local, rank, step), step)
    if not used:
        return (), []
    (chunks, parts), (before, sums) = found, arrived
    carried = [torch.zeros_like(room(like, used, local.partition)) for _ in range(2)]
    for number in range(2):
        if before:
            add_into(carried[number], used, sums[number], before)
        here = tuple(chunk for chunk in chunks if chunk in used)
        if here:
            add_into(carried[number], used, select(parts[number], chunks, here), here)
    return used, carried
