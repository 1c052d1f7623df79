"""Ring attention: keys and values travel round the ring of ranks, queries stay (Liu et al., arXiv 2310.01889).

They travel in one direction, or half of the chunks each way. A chunk travels only as far as a rank needs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.context.local import Accumulator, LocalAttention, Transfers, add_into, empty_chunks, select, zeros_like
from parallel.context.partition import Chunks
from parallel.recompute import compute_or_reuse


@dataclass(frozen=True)
class Stream:
    """Chunks `start` to `stop` of every rank, which travel in one direction: to rank + 1 or to rank - 1."""

    start: int
    stop: int
    direction: int

    def chunks(self, local: LocalAttention, rank: int) -> Chunks:
        """The chunks of this stream that a rank owns."""
        return local.partition.owners[rank][self.start : self.stop]

    def origin(self, local: LocalAttention, rank: int, step: int) -> int:
        """The rank whose chunks `rank` has after `step` steps."""
        return (rank - self.direction * step) % local.partition.ranks

    def travelling(self, local: LocalAttention, origin: int, step: int) -> Chunks:
        """The chunks of rank `origin` that still travel at a step: the holder of that step or of a later one needs them."""
        owners, ranks = local.partition.owners, local.partition.ranks
        needed: set[int] = set()
        for later in range(step, ranks):
            needed.update(local.columns(owners[(origin + self.direction * later) % ranks], self.chunks(local, origin)))
        return tuple(sorted(needed))

    def used(self, local: LocalAttention, origin: int, step: int) -> Chunks:
        """The chunks of rank `origin` that others have used in steps 1 to `step`: their gradients travel back to it."""
        owners, ranks = local.partition.owners, local.partition.ranks
        used: set[int] = set()
        for earlier in range(1, step + 1):
            used.update(local.columns(owners[(origin + self.direction * earlier) % ranks], self.chunks(local, origin)))
        return tuple(sorted(used))


def split_chunks(num_chunks: int, *, bidirectional: bool) -> list[Stream]:
    """All of a rank's chunks one way, or the first half one way and the second half the other."""
    half = num_chunks // 2
    if bidirectional and half:
        return [Stream(0, half, 1), Stream(half, num_chunks, -1)]
    return [Stream(0, num_chunks, 1)]


def ring_attention(
    query: Tensor, key: Tensor, value: Tensor, local: LocalAttention, group: dist.ProcessGroup, *, bidirectional: bool
) -> Tensor:
    """Attention of this rank's queries to the keys of all ranks. All tensors (B, heads, s, D); a collective."""
    streams = split_chunks(len(local.partition.owners[0]), bidirectional=bidirectional)
    output: Tensor = _Ring.apply(query, key, value, local, group, streams)
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
        streams: Sequence[Stream],
    ) -> Tensor:
        output, lse = compute_or_reuse(partial(_attend, query, key, value, local, group, streams))
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.local, ctx.group, ctx.streams = local, group, streams
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        local, group, streams = ctx.local, ctx.group, ctx.streams
        rank, ranks = group.rank(), group.size()
        mine = local.partition.owners[rank]
        totals = zeros_like(lse.dtype, query, key, value)
        held = [_start(stream, local, rank, mine, (key, value)) for stream in streams]
        gradient_sums: list[tuple[Chunks, list[Tensor]]] = [((), []) for _ in streams]
        for step in range(ranks):
            transfers, incoming, arriving = Transfers(group), [], []
            for stream, (chunks, tensors), (used, sums) in zip(streams, held, gradient_sums, strict=True):
                incoming.append(_transfer_keys_and_values(stream, local, rank, step, chunks, tensors, transfers))
                arriving.append(_transfer_gradient_sums(stream, local, rank, step, used, sums, transfers, like=totals[1]))
            transfers.post()
            if step == 0:
                local.backward(gradient, query, output, lse, mine, key, value, mine, *totals[1:], totals[0])
            for number, (chunks, (its_key, its_value)) in enumerate(held if step else []):
                gradients = zeros_like(lse.dtype, its_key, its_value)
                if local.rows(mine, chunks):
                    local.backward(gradient, query, output, lse, mine, its_key, its_value, chunks, *gradients, totals[0])
                held[number] = (chunks, gradients)
            transfers.wait()
            if step:
                gradient_sums = [
                    _add_gradients(stream, local, rank, step, computed, arrived, like=totals[1])
                    for stream, computed, arrived in zip(streams, held, arriving, strict=True)
                ]
            held = incoming
        transfers, arriving = Transfers(group), []
        for stream, (used, sums) in zip(streams, gradient_sums, strict=True):
            arriving.append(_transfer_gradient_sums(stream, local, rank, ranks, used, sums, transfers, like=totals[1]))
        transfers.post().wait()
        for used, sums in arriving:
            for total, part in zip(totals[1:], sums, strict=False):
                add_into(total, mine, part, used)
        return totals[0].to(query.dtype), totals[1].to(key.dtype), totals[2].to(value.dtype), None, None, None


Held = tuple[Chunks, list[Tensor]]
"""Chunks, and tensors over their tokens."""


def _start(stream: Stream, local: LocalAttention, rank: int, mine: Chunks, tensors: Sequence[Tensor]) -> Held:
    chunks = stream.chunks(local, rank)
    return chunks, [select(tensor, mine, chunks) for tensor in tensors]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, local: LocalAttention, group: dist.ProcessGroup, streams: Sequence[Stream]
) -> tuple[Tensor, Tensor]:
    """(output, log-sum-exp) of this rank's queries."""
    rank, ranks = group.rank(), group.size()
    mine = local.partition.owners[rank]
    total = Accumulator.empty(query, mine)
    held = [_start(stream, local, rank, mine, (key, value)) for stream in streams]
    for step in range(ranks):
        transfers, incoming = Transfers(group), []
        for stream, (chunks, tensors) in zip(streams, held, strict=True):
            incoming.append(_transfer_keys_and_values(stream, local, rank, step, chunks, tensors, transfers))
        transfers.post()
        # The rank's own keys in one call, even if they travel in two streams: the kernels support this mask.
        for chunks, (its_key, its_value) in held if step else [(mine, [key, value])]:
            if rows := local.rows(mine, chunks):
                total.merge(rows, *local.forward(query, mine, its_key, its_value, chunks))
        transfers.wait()
        held = incoming
    return total.output_BHsD.to(query.dtype), total.lse_BHs


def _transfer_keys_and_values(
    stream: Stream, local: LocalAttention, rank: int, step: int, chunks: Chunks, tensors: Sequence[Tensor], transfers: Transfers
) -> Held:
    """Add keys and values to the transfers to the next rank. Returns buffers for those from the previous rank."""
    ranks = local.partition.ranks
    if step + 1 == ranks:
        return (), []
    sent = stream.travelling(local, stream.origin(local, rank, step), step + 1)
    received = stream.travelling(local, stream.origin(local, rank, step + 1), step + 1)
    buffers = [empty_chunks(tensor, received, local.partition) for tensor in tensors] if received else []
    transfers.add(
        [select(tensor, chunks, sent) for tensor in tensors] if sent else [], (rank + stream.direction) % ranks,
        buffers, (rank - stream.direction) % ranks,
    )  # fmt: skip
    return received, buffers or [tensor[:, :, :0] for tensor in tensors]


def _transfer_gradient_sums(
    stream: Stream,
    local: LocalAttention,
    rank: int,
    step: int,
    used: Chunks,
    sums: Sequence[Tensor],
    transfers: Transfers,
    like: Tensor,
) -> Held:
    """Add the previous step's sums of gradients to the transfers to the next rank, after the last step their owner. Returns
    buffers for those from the previous rank."""
    ranks = local.partition.ranks
    if step < 2:
        return (), []
    received = stream.used(local, stream.origin(local, rank, step), step - 1)
    buffers = [empty_chunks(like, received, local.partition) for _ in range(2)] if received else []
    transfers.add(sums, (rank + stream.direction) % ranks, buffers, (rank - stream.direction) % ranks)
    return received, buffers


def _add_gradients(
    stream: Stream, local: LocalAttention, rank: int, step: int, computed: Held, arrived: Held, like: Tensor
) -> Held:
    """Add this step's gradients of another rank's keys and values to the sums that have arrived."""
    used = stream.used(local, stream.origin(local, rank, step), step)
    if not used:
        return (), []
    (chunks, parts), (used_before, sums) = computed, arrived
    totals = [torch.zeros_like(empty_chunks(like, used, local.partition)) for _ in range(2)]
    for number in range(2):
        if used_before:
            add_into(totals[number], used, sums[number], used_before)
        useful = tuple(chunk for chunk in chunks if chunk in used)
        if useful:
            add_into(totals[number], used, select(parts[number], chunks, useful), useful)
    return used, totals
