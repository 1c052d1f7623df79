"""What all methods share on a rank: attention between chunks, merging its results, and transfers that run at the same time.

Shape suffixes: B batch, H query heads, K key/value heads, s tokens of some chunks, D head_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.attention import attend
from parallel.context.partition import Chunks, Partition

TOKENS = 2
"""The token dimension of (B, heads, s, D) tensors."""


def select(tensor: Tensor, held: Chunks, wanted: Chunks) -> Tensor:
    """The tokens of the `wanted` chunks, from a tensor with the tokens of the `held` chunks."""
    if held == wanted:
        return tensor
    pieces = tensor.chunk(len(held), dim=TOKENS)
    return torch.cat([pieces[held.index(chunk)] for chunk in wanted], dim=TOKENS)


def add_into(total: Tensor, held: Chunks, part: Tensor, chunks: Chunks) -> None:
    """Add `part`, which has the tokens of `chunks`, to a total over the `held` chunks."""
    places = total.chunk(len(held), dim=TOKENS)
    for chunk, its_part in zip(chunks, part.chunk(len(chunks), dim=TOKENS), strict=True):
        places[held.index(chunk)].add_(its_part)


@dataclass
class Accumulator:
    """Output and log-sum-exp of the queries of the `held` chunks over all keys seen so far, in at least fp32."""

    held: Chunks
    output_BHsD: Tensor
    lse_BHs: Tensor

    @staticmethod
    def empty(query_BHsD: Tensor, held: Chunks) -> "Accumulator":
        """An accumulator that has seen no keys yet."""
        dtype = torch.promote_types(query_BHsD.dtype, torch.float32)
        output = torch.zeros_like(query_BHsD, dtype=dtype, memory_format=torch.contiguous_format)
        return Accumulator(held, output, torch.full(output.shape[:-1], float("-inf"), dtype=dtype, device=output.device))

    def merge(self, chunks: Chunks, output_BHsD: Tensor, lse_BHs: Tensor) -> None:
        """Merge the output and the log-sum-exp of another block, for the queries of `chunks`."""
        outputs, lses = (total.chunk(len(self.held), dim=TOKENS) for total in (self.output_BHsD, self.lse_BHs))
        pieces = zip(chunks, *(part.chunk(len(chunks), dim=TOKENS) for part in (output_BHsD, lse_BHs)), strict=True)
        for chunk, new_output, new_lse in pieces:
            output, lse = (total[self.held.index(chunk)] for total in (outputs, lses))
            attend.merge_into(output, lse, new_output, new_lse)


@dataclass(frozen=True)
class LocalAttention:
    """Attention between chunks. Pairs of chunks of which no query may see a key are skipped."""

    partition: Partition
    scale: float

    def rows(self, queries: Chunks, keys: Chunks) -> Chunks:
        """The chunks of `queries` with a query that sees a key of `keys`."""
        needs = self.partition.needs
        return tuple(query for query in queries if any(needs[query][key] for key in keys))

    def columns(self, queries: Chunks, keys: Chunks) -> Chunks:
        """The chunks of `keys` with a key that a query of `queries` sees."""
        needs = self.partition.needs
        return tuple(key for key in keys if any(needs[query][key] for query in queries))

    def forward(self, query: Tensor, queries: Chunks, key: Tensor, value: Tensor, keys: Chunks) -> tuple[Tensor, Tensor]:
        """(output, log-sum-exp) of the chunks `rows(queries, keys)`, in order."""
        rows = self.rows(queries, keys)
        output, lse = attend.forward(query, key, value, self.partition.pieces(queries, keys), self.scale)
        return select(output, queries, rows), select(lse, queries, rows)

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
        """Add this block's gradients to the totals: `query_gradient` over `queries`, the other two over `keys`."""
        pieces = self.partition.pieces(queries, keys)
        totals = (query_gradient, key_gradient, value_gradient)
        attend.backward(gradient, query, key, value, output, lse, pieces, self.scale, totals)


def zeros_like(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """Zeros in `dtype` with the shape of each tensor."""
    return [torch.zeros_like(tensor, dtype=dtype, memory_format=torch.contiguous_format) for tensor in tensors]


@dataclass
class Transfers:
    """The messages of one step of a method, posted before its attention and awaited after it. Receives are posted first.

    Messages between two ranks arrive in the order of posting, so both ranks must add them in the same order.
    """

    group: dist.ProcessGroup
    _receives: list[tuple[Tensor, int]] = field(default_factory=list)
    _sends: list[tuple[Tensor, int]] = field(default_factory=list)
    _works: list[dist.Work] = field(default_factory=list)

    def add(self, sent: Sequence[Tensor], to: int, received: Sequence[Tensor], source: int) -> None:
        """Add tensors to send to rank `to` of the group, and empty tensors to receive from rank `source`."""
        self._sends += [(tensor.contiguous(), to) for tensor in sent]
        self._receives += [(tensor, source) for tensor in received]

    def post(self) -> "Transfers":
        """Start the transfers."""
        operations = [dist.P2POp(dist.irecv, tensor, group=self.group, group_peer=peer) for tensor, peer in self._receives]
        operations += [dist.P2POp(dist.isend, tensor, group=self.group, group_peer=peer) for tensor, peer in self._sends]
        self._works = dist.batch_isend_irecv(operations) if operations else []
        return self

    def wait(self) -> None:
        """Wait until all transfers are done."""
        for work in self._works:
            work.wait()


def empty_chunks(like: Tensor, chunks: Chunks, partition: Partition) -> Tensor:
    """An empty tensor for the tokens of `chunks`, otherwise like the tensor `like`."""
    shape = list(like.shape)
    shape[TOKENS] = len(chunks) * partition.chunk
    return torch.empty(shape, dtype=like.dtype, device=like.device)
