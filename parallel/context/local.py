"""What all methods do on a rank: attention between chunks it holds, merging, and transfers that run meanwhile.

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
"""The dimension of heads-first tensors that runs over tokens."""
TILE = 256
"""Queries whose mask is in memory at once, where documents need one."""


def select(tensor: Tensor, held: Chunks, wanted: Chunks) -> Tensor:
    """The tokens of the `wanted` chunks of a tensor that has those of the `held` ones."""
    if held == wanted:
        return tensor
    pieces = tensor.chunk(len(held), dim=TOKENS)
    return torch.cat([pieces[held.index(chunk)] for chunk in wanted], dim=TOKENS)


def add_into(total: Tensor, held: Chunks, part: Tensor, chunks: Chunks, tokens: slice = slice(None)) -> None:
    """Add a part to a total that has the held chunks. The part has these `tokens` of `chunks`, laid one behind the other."""
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
        # One chunk after the other under a causal mask is one call of the kernel, which skips what is above the diagonal.
        if self.partition.is_triangle(queries, keys):
            return [(queries, keys)]
        calls: dict[Chunks, list[int]] = {}
        for query in queries:
            if seen := self.columns((query,), keys):
                calls.setdefault(seen, []).append(query)
        return [(tuple(found), seen) for seen, found in calls.items()]

    def _tiles(self, queries: Chunks, keys: Chunks) -> Iterator[tuple[slice, slice, block.Mask]]:
        """Which tokens of the queries are computed together, with which tokens of the keys, under which mask.

        Where a mask has to be written down, only so much of it at a time that it stays small whatever the length of the
        sequence, and only over the keys that are in the documents of these queries.
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
        """(output, log-sum-exp) of `rows(queries, keys)`, in their order."""
        rows = self.rows(queries, keys)
        outputs: dict[int, Tensor] = {}
        lses: dict[int, Tensor] = {}
        for some, seen in self._calls(queries, keys):
            here = select(query, queries, some), select(key, keys, seen), select(value, keys, seen)
            found = [
                block.forward(here[0][:, :, tile], here[1][:, :, columns], here[2][:, :, columns], mask, self.scale)
                for tile, columns, mask in self._tiles(some, seen)
            ]
            output, lse = (_join(parts) for parts in zip(*found, strict=True))
            outputs |= zip(some, output.chunk(len(some), dim=TOKENS), strict=True)
            lses |= zip(some, lse.chunk(len(some), dim=TOKENS), strict=True)
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
        """Add the gradients between these chunks to totals: of `queries` to `query_gradient`, of `keys` to the other two."""
        for some, seen in self._calls(queries, keys):
            of_queries = [select(tensor, queries, some) for tensor in (gradient, query, output, lse)]
            of_keys = [select(tensor, keys, seen) for tensor in (key, value)]
            totals = [query_gradient, key_gradient, value_gradient]
            for tile, columns, mask in self._tiles(some, seen):
                its_gradient, its_query, its_output, its_lse = (tensor[:, :, tile] for tensor in of_queries)
                its_key, its_value = (tensor[:, :, columns] for tensor in of_keys)
                found = block.backward(its_gradient, its_query, its_key, its_value, its_output, its_lse, mask, self.scale)
                places = (queries, some, tile), (keys, seen, columns), (keys, seen, columns)
                for total, (held, chunks, tokens), part in zip(totals, places, found, strict=True):
                    add_into(total, held, part, chunks, tokens)


def zeros_like(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """Totals to add to, in `dtype`, one for each tensor."""
    return [torch.zeros_like(tensor, dtype=dtype, memory_format=torch.contiguous_format) for tensor in tensors]


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=TOKENS)


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
