"""Which part of a sequence each rank holds, and which parts must see each other.

A sequence of S tokens is cut into chunks of equal length; a rank holds several, in ascending order. What a method
sends, computes and skips follows from two facts that every rank knows: which rank holds which chunk, and which chunks have a
query that may see a key of which other chunks.

Shape suffixes: B batch, S whole sequence, s this rank's tokens, C chunks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from parallel.context.names import CHUNKS_OF_A_RANK, PartitionName

Chunks = tuple[int, ...]
"""Indices of chunks, ascending."""


def contiguous(ranks: int) -> tuple[Chunks, ...]:
    """Rank r holds the r-th part of the sequence. Under a causal mask later ranks have more work."""
    return tuple((2 * rank, 2 * rank + 1) for rank in range(ranks))


def zigzag(ranks: int) -> tuple[Chunks, ...]:
    """Rank r holds chunks r and 2P - 1 - r: under a causal mask all ranks have the same work in every step of a ring."""
    return tuple((rank, 2 * ranks - 1 - rank) for rank in range(ranks))


def balanced(ranks: int, work: Sequence[float]) -> tuple[Chunks, ...]:
    """Equally many chunks for every rank, by a greedy choice: the heaviest chunk left goes to the rank with the least work."""
    free, load = [len(work) // ranks] * ranks, [0.0] * ranks
    held: list[list[int]] = [[] for _ in range(ranks)]
    for chunk in sorted(range(len(work)), key=lambda chunk: (-work[chunk], chunk)):
        rank = min((rank for rank in range(ranks) if free[rank]), key=lambda rank: (load[rank], rank))
        held[rank].append(chunk)
        load[rank] += work[chunk]
        free[rank] -= 1
    return tuple(tuple(sorted(chunks)) for chunks in held)


@dataclass(frozen=True)
class Partition:
    """Which rank holds which tokens of the rows of a batch, and which tokens see each other.

    Attributes:
        document_BS: number of every token's document, ascending along a row; on the CPU or the device of the batch.
        owners: the chunks of every rank.
        causal: a query sees no keys after its own position.
    """

    document_BS: Tensor
    owners: tuple[Chunks, ...]
    causal: bool = True

    @staticmethod
    def of(document_BS: Tensor, ranks: int, name: PartitionName, *, causal: bool = True) -> "Partition":
        """The named partition. `balanced` considers the documents, and cuts the sequence into more chunks than the others.

        Raises:
            ValueError: the sequence does not divide into chunks, or `name` is zigzag without a causal mask.
        """
        sequence, chunks = document_BS.shape[1], ranks * CHUNKS_OF_A_RANK[name]
        if sequence % chunks:
            raise ValueError(
                f"a sequence of {sequence} tokens is not divisible by the {chunks} chunks of {ranks} ranks ({name})"
            )
        if name == "zigzag" and not causal:
            raise ValueError("zigzag balances a causal mask; without one use contiguous, which is balanced then")
        if name == "balanced":
            trial = Partition(document_BS, tuple((chunk,) for chunk in range(chunks)), causal)
            return Partition(document_BS, balanced(ranks, trial.work_of_chunks()), causal)
        return Partition(document_BS, {"contiguous": contiguous, "zigzag": zigzag}[name](ranks), causal)

    @property
    def ranks(self) -> int:
        """Number of ranks that share the sequence."""
        return len(self.owners)

    @property
    def num_chunks(self) -> int:
        """Number of chunks in the whole sequence."""
        return sum(map(len, self.owners))

    @property
    def chunk(self) -> int:
        """Tokens in a chunk."""
        return self.document_BS.shape[1] // self.num_chunks

    def positions(self, chunks: Chunks) -> Tensor:
        """Positions in the sequence of the tokens of `chunks`, shape (tokens,)."""
        starts = torch.tensor(chunks, device=self.document_BS.device) * self.chunk
        return (starts[:, None] + torch.arange(self.chunk, device=starts.device)).flatten()

    def take(self, tensor_BS: Tensor, rank: int) -> Tensor:
        """A rank's part of a tensor whose second dimension is the sequence: tokens, targets, positions, documents."""
        return tensor_BS.index_select(1, self.positions(self.owners[rank]).to(tensor_BS.device))

    def restore(self, parts: Sequence[Tensor]) -> Tensor:
        """The whole tensor from every rank's part; the inverse of `take`."""
        held = torch.cat([self.positions(chunks) for chunks in self.owners]).to(parts[0].device)
        return torch.cat(list(parts), dim=1).index_select(1, held.argsort())

    @cached_property
    def _documents_of_chunks(self) -> list[list[tuple[int, int]]]:
        """(first, last) document of every chunk, for every row: [row][chunk]."""
        by_chunk_BCs = self.document_BS.unflatten(1, (self.num_chunks, self.chunk))
        first, last = by_chunk_BCs[:, :, 0].tolist(), by_chunk_BCs[:, :, -1].tolist()
        return [list(zip(*row, strict=True)) for row in zip(first, last, strict=True)]

    @cached_property
    def needs(self) -> list[list[bool]]:
        """needs[query chunk][key chunk]: whether any query of one may see any key of the other, in any row."""
        chunks = range(self.num_chunks)

        def sees(query: int, key: int) -> bool:
            if self.causal and key > query:
                return False
            # Documents ascend along a row, so two chunks share a document if their ranges of documents overlap.
            return any(row[query][0] <= row[key][1] and row[key][0] <= row[query][1] for row in self._documents_of_chunks)

        return [[sees(query, key) for key in chunks] for query in chunks]

    def in_one_document(self, chunks: Chunks) -> bool:
        """Whether all tokens of these chunks are in the same document, in every row."""
        documents = ({document for chunk in chunks for document in row[chunk]} for row in self._documents_of_chunks)
        return all(len(of_row) == 1 for of_row in documents)

    def sees_all(self, query: Chunks, keys: Chunks) -> bool:
        """Whether every query of `query` may see every key of `keys`."""
        return (not self.causal or keys[-1] < query[0]) and self.in_one_document((*query, *keys))

    def is_triangle(self, query: Chunks, keys: Chunks) -> bool:
        """Whether every query of `query` may see exactly the keys of `keys` up to its own position."""
        return self.causal and query == keys and self.in_one_document(query)

    def span(self, query_s: Tensor, key_s: Tensor) -> slice:
        """The shortest slice of the keys, of at least one, that has all keys in documents of the queries. Positions ascend."""
        first_B1, last_B1 = self.document_BS[:, query_s[:1]], self.document_BS[:, query_s[-1:]]
        document_Bs = self.document_BS[:, key_s]
        shared = ((document_Bs >= first_B1) & (document_Bs <= last_B1)).any(dim=0).nonzero()
        return slice(int(shared[0]), int(shared[-1]) + 1) if len(shared) else slice(0, 1)

    def seen(self, query: Chunks, keys: Chunks) -> Tensor:
        """Which keys of `keys` each query of `query` may see: bool (B, 1, tokens of query, tokens of keys)."""
        return self.seen_at(self.positions(query), self.positions(keys))

    def seen_at(self, query_s: Tensor, key_s: Tensor) -> Tensor:
        """Which keys at positions `key_s` each query at positions `query_s` may see: bool (B, 1, queries, keys)."""
        same_Bss = self.document_BS[:, query_s, None] == self.document_BS[:, None, key_s]
        return (same_Bss & (query_s[:, None] >= key_s) if self.causal else same_Bss)[:, None]

    def work_of_chunks(self) -> list[float]:
        """Number of (query, key) pairs of the queries of each chunk, over all rows."""
        sequence = self.document_BS.shape[1]
        position_S = torch.arange(sequence, device=self.document_BS.device)
        is_first_BS = torch.ones_like(self.document_BS, dtype=torch.bool)
        is_first_BS[:, 1:] = self.document_BS[:, 1:] != self.document_BS[:, :-1]
        start_BS = torch.where(is_first_BS, position_S, 0).cummax(dim=1).values
        if self.causal:
            seen_BS = position_S - start_BS + 1
        else:
            last_BS = torch.where(is_first_BS.roll(-1, 1), position_S, sequence).flip(1).cummin(dim=1).values.flip(1)
            seen_BS = last_BS - start_BS + 1
        return [float(pairs) for pairs in seen_BS.unflatten(1, (self.num_chunks, self.chunk)).sum(dim=(0, 2))]

    def work(self) -> list[float]:
        """Number of (query, key) pairs of every rank's queries."""
        of_chunk = self.work_of_chunks()
        return [sum(of_chunk[chunk] for chunk in chunks) for chunks in self.owners]

    def imbalance(self) -> float:
        """Work of the busiest rank over the mean work."""
        work = self.work()
        return max(work) * len(work) / sum(work)
