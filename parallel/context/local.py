"""What all methods share on a rank: attention between chunks, merging its results, and transfers that run at the same time.

Shape suffixes: B batch, H query heads, K key/value heads, s tokens of some chunks, D head_dim.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.context import block
from parallel.context.partition import Chunks, Partition

TOKENS = 2
"""The token dimension of (B, heads, s, D) tensors."""
TILE = 256
"""How many queries have their mask in memory at once, if documents need one."""


def select(tensor: Tensor, held: Chunks, wanted: Chunks) -> Tensor:
    """The tokens of the `wanted` chunks, from a tensor with the tokens of the `held` chunks."""
    if held == wanted:
        return tensor
    pieces = tensor.chunk(len(held), dim=TOKENS)
    return torch.cat([pieces[held.index(chunk)] for chunk in wanted], dim=TOKENS)


def add_into(total: Tensor, held: Chunks, part: Tensor, chunks: Chunks, tokens: slice = slice(None)) -> None:
    """Add `part` to a total over the `held` chunks. `part` has the slice `tokens` of the tokens of `chunks`, in order."""
    size, first = total.shape[TOKENS] // len(held), tokens.start or 0
    done = 0
    while done < part.shape[TOKENS]:
        number, offset = divmod(first + done, size)
        length = min(size - offset, part.shape[TOKENS] - done)
        place = held.index(chunks[number]) * size + offset
        total.narrow(TOKENS, place, length).add_(part.narrow(TOKENS, done, length))
        done += length


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
        """Merge the output o and the log-sum-exp m of another block, for the queries of `chunks`.

        O <- O - sigmoid(m - l) (O - o), l <- logaddexp(l, m). If neither has seen a key, O and l stay as they are.
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

    def _calls(self, queries: Chunks, keys: Chunks) -> list[tuple[Chunks, Chunks]]:
        """(chunks of queries, chunks of keys they see): all queries that see the same keys are in one call."""
        # Several chunks under one causal mask are a single call of the kernel, which skips what is above the diagonal.
        if self.partition.is_triangle(queries, keys):
            return [(queries, keys)]
        calls: dict[Chunks, list[int]] = {}
        for query in queries:
            if seen := self.columns((query,), keys):
                calls.setdefault(seen, []).append(query)
        return [(tuple(chunks), seen) for seen, chunks in calls.items()]

    def _tiles(self, queries: Chunks, keys: Chunks) -> Iterator[tuple[slice, slice, block.Mask]]:
        """(tokens of the queries, tokens of the keys, mask) of each kernel call.

        If a mask tensor is needed, it covers at most TILE queries and only the keys in their documents, so that it stays small
        for sequences of any length.
        """
        partition, whole = self.partition, slice(None)
        if partition.sees_all(queries, keys):
            yield whole, whole, True
        elif partition.is_triangle(queries, keys):
            yield whole, whole, False
        else:
            query_s, key_s = partition.positions(queries), partition.positions(keys)
            for start in range(0, len(query_s), TILE):
                rows = slice(start, start + TILE)
                columns = partition.span(query_s[rows], key_s)
                yield rows, columns, partition.seen_at(query_s[rows], key_s[columns])

    def forward(self, query: Tensor, queries: Chunks, key: Tensor, value: Tensor, keys: Chunks) -> tuple[Tensor, Tensor]:
        """(output, log-sum-exp) of the chunks `rows(queries, keys)`, in order."""
        rows = self.rows(queries, keys)
        outputs: dict[int, Tensor] = {}
        lses: dict[int, Tensor] = {}
        for call_queries, call_keys in self._calls(queries, keys):
            its_query = select(query, queries, call_queries)
            its_key, its_value = (select(tensor, keys, call_keys) for tensor in (key, value))
            tiles = [
                block.forward(its_query[:, :, tile], its_key[:, :, columns], its_value[:, :, columns], mask, self.scale)
                for tile, columns, mask in self._tiles(call_queries, call_keys)
            ]
            output, lse = (_join(parts) for parts in zip(*tiles, strict=True))
            outputs |= zip(call_queries, output.chunk(len(call_queries), dim=TOKENS), strict=True)
            lses |= zip(call_queries, lse.chunk(len(call_queries), dim=TOKENS), strict=True)
        return _join([outputs[row] for row in rows]), _join([lses[row] for row in rows])

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
        for call_queries, call_keys in self._calls(queries, keys):
            of_queries = [select(tensor, queries, call_queries) for tensor in (gradient, query, output, lse)]
            of_keys = [select(tensor, keys, call_keys) for tensor in (key, value)]
            totals = [query_gradient, key_gradient, value_gradient]
            for tile, columns, mask in self._tiles(call_queries, call_keys):
                its_gradient, its_query, its_output, its_lse = (tensor[:, :, tile] for tensor in of_queries)
                its_key, its_value = (tensor[:, :, columns] for tensor in of_keys)
                gradients = block.backward(its_gradient, its_query, its_key, its_value, its_output, its_lse, mask, self.scale)
                places = (queries, call_queries, tile), (keys, call_keys, columns), (keys, call_keys, columns)
                for total, (held, chunks, tokens), part in zip(totals, places, gradients, strict=True):
                    add_into(total, held, part, chunks, tokens)


def zeros_like(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """Zeros in `dtype` with the shape of each tensor."""
    return [torch.zeros_like(tensor, dtype=dtype, memory_format=torch.contiguous_format) for tensor in tensors]


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=TOKENS)


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
