"""What all methods do on a rank: attention between chunks it holds, merging, and transfers that run meanwhile.

Shape suffixes: B batch, H query heads, K key/value heads, s tokens of some chunks, D head_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.context import block
from parallel.context.partition import Chunks, Partition

TOKENS = 2
"""The dimension of heads-first tensors that runs over tokens."""


def select(tensor: Tensor, held: Chunks, wanted: Chunks) -> Tensor:
    """The tokens of the `wanted` chunks of a tensor that has those of the `held` ones."""
    if held == wanted:
        return tensor
    pieces = tensor.chunk(len(held), dim=TOKENS)
    return torch.cat([pieces[held.index(chunk)] for chunk in wanted], dim=TOKENS)


def add_into(total: Tensor, held: Chunks, part: Tensor, chunks: Chunks) -> None:
    """Add a part, which has some of the chunks, to a total that has the held ones."""
    pieces = total.chunk(len(held), dim=TOKENS)
    for chunk, piece in zip(chunks, part.chunk(len(chunks), dim=TOKENS), strict=True):
        pieces[held.index(chunk)].add_(piece)


@dataclass
class Accumulator:
    """Output and log-sum-exp of some queries over all the keys seen so far, in at least fp32."""

    held: Chunks
    output_BHsD: Tensor
    lse_BHs: Tensor

    @staticmethod
    def empty(query_BHsD: Tensor, held: Chunks) -> "Accumulator":
        """Nothing seen yet."""
        dtype = torch.promote_types(query_BHsD.dtype, torch.float32)
        output = torch.zeros_like(query_BHsD, dtype=dtype, memory_format=torch.contiguous_format)
        return Accumulator(held, output, torch.full(output.shape[:-1], float("-inf"), dtype=dtype, device=output.device))

    def merge(self, chunks: Chunks, output_BHsD: Tensor, lse_BHs: Tensor) -> None:
        """Take in what some of the queries see in one more block.

        O <- O - sigmoid(m - l) (O - o), l <- logaddexp(l, m); where neither has seen a key, both stay as they are.
        """
        outputs, lses = (total.chunk(len(self.held), dim=TOKENS) for total in (self.output_BHsD, self.lse_BHs))
        pieces = zip(chunks, *(part.chunk(len(chunks), dim=TOKENS) for part in (output_BHsD, lse_BHs)), strict=True)
        for chunk, new_output, new_lse in pieces:
            output, lse = (total[self.held.index(chunk)] for total in (outputs, lses))
            share = torch.where(new_lse == float("-inf"), 0.0, torch.sigmoid(new_lse - lse))
            output.add_(share[..., None] * (new_output - output))
            lse.copy_(torch.logaddexp(lse, new_lse))


@dataclass(frozen=True)
class LocalAttention:
    """Attention between chunks, skipping what no token of one may see of the other."""

    partition: Partition
    scale: float

    def rows(self, queries: Chunks, keys: Chunks) -> Chunks:
        """Those of `queries` that see anything of `keys`."""
        needs = self.partition.needs
        return tuple(query for query in queries if any(needs[query][key] for key in keys))

    def columns(self, queries: Chunks, keys: Chunks) -> Chunks:
        """Those of `keys` of which any of `queries` sees anything."""
        needs = self.partition.needs
        return tuple(key for key in keys if any(needs[query][key] for query in queries))

    def _calls(self, queries: Chunks, keys: Chunks) -> list[tuple[Chunks, Chunks]]:
        """Queries that see the same keys, together, with these keys."""
        calls: dict[Chunks, list[int]] = {}
        for query in queries:
            if seen := self.columns((query,), keys):
                calls.setdefault(seen, []).append(query)
        merged: dict[Chunks, Chunks] = {seen: tuple(found) for seen, found in calls.items()}
        # One chunk after the other under a causal mask is one call of the kernel, which skips what is above the diagonal.
        if self.partition.causal and self.partition.one_document and queries == keys:
            return [(queries, keys)]
        return [(found, seen) for seen, found in merged.items()]

    def _mask(self, queries: Chunks, keys: Chunks) -> block.Mask:
        partition = self.partition
        if partition.sees_all(queries, keys):
            return True
        if partition.causal and partition.one_document and queries == keys:
            return False
        return partition.seen(queries, keys)

    def forward(self, query: Tensor, queries: Chunks, key: Tensor, value: Tensor, keys: Chunks) -> tuple[Tensor, Tensor]:
        """(output, log-sum-exp) of `rows(queries, keys)`, in their order."""
        rows = self.rows(queries, keys)
        outputs: dict[int, Tensor] = {}
        lses: dict[int, Tensor] = {}
        for some, seen in self._calls(queries, keys):
            output, lse = block.forward(
                select(query, queries, some),
                select(key, keys, seen),
                select(value, keys, seen),
                self._mask(some, seen),
                self.scale,
            )
            outputs |= zip(some, output.chunk(len(some), dim=TOKENS), strict=True)
            lses |= zip(some, lse.chunk(len(some), dim=TOKENS), strict=True)
        return torch.cat([outputs[row] for row in rows], dim=TOKENS), torch.cat([lses[row] for row in rows], dim=TOKENS)

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        output: Tensor,
        lse: Tensor,
        queries: Chunks,
        key: Tensor,
        value: Tensor,
        keys: Chunks,
        key_gradient: Tensor,
        value_gradient: Tensor,
        query_gradient: Tensor,
    ) -> None:
        """Add the gradients between these chunks to totals: of `queries` to `query_gradient`, of `keys` to the other two."""
        for some, seen in self._calls(queries, keys):
            found = block.backward(
                select(gradient, queries, some),
                select(query, queries, some),
                select(key, keys, seen),
                select(value, keys, seen),
                select(output, queries, some),
                select(lse, queries, some),
                self._mask(some, seen),
                self.scale,
            )
            add_into(query_gradient, queries, found[0], some)
            add_into(key_gradient, keys, found[1], seen)
            add_into(value_gradient, keys, found[2], seen)


@dataclass
class Transfers:
    """Messages of one step of a method, posted before its attention and awaited after it; receives are posted first.

    Messages between two ranks arrive in the order they are posted in, so both sides add them in one order.
    """

    group: dist.ProcessGroup
    _receives: list[tuple[Tensor, int]] = field(default_factory=list)
    _sends: list[tuple[Tensor, int]] = field(default_factory=list)
    _works: list[dist.Work] = field(default_factory=list)

    def add(self, sent: Sequence[Tensor], to: int, received: Sequence[Tensor], source: int) -> None:
        """Send some tensors to one rank of the group and receive others (empty ones, to be filled) from another."""
        self._sends += [(tensor.contiguous(), to) for tensor in sent]
        self._receives += [(tensor, source) for tensor in received]

    def post(self) -> "Transfers":
        """Start them."""
        operations = [dist.P2POp(dist.irecv, tensor, group=self.group, group_peer=peer) for tensor, peer in self._receives]
        operations += [dist.P2POp(dist.isend, tensor, group=self.group, group_peer=peer) for tensor, peer in self._sends]
        self._works = dist.batch_isend_irecv(operations) if operations else []
        return self

    def wait(self) -> None:
        """Until all of them are done."""
        for work in self._works:
            work.wait()


def room(like: Tensor, chunks: Chunks, partition: Partition) -> Tensor:
    """An empty tensor for the tokens of some chunks, else like another one."""
    shape = list(like.shape)
    shape[TOKENS] = len(chunks) * partition.chunk
    return torch.empty(shape, dtype=like.dtype, device=like.device)
