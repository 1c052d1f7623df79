"""The protocol of context parallelism: partition a batch, then attend. The methods differ in what ranks send."""

from dataclasses import dataclass
from typing import assert_never

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.batch import Batch
from parallel.context.local import LocalAttention
from parallel.context.names import CHUNKS_OF_A_RANK, Method, PartitionName
from parallel.context.partition import Partition
from parallel.context.ring import ring_attention
from parallel.context.token_ring import token_ring_attention
from parallel.context.ulysses import ulysses_attention


@dataclass(eq=False)
class ContextParallel:
    """How the ranks of `group` share every sequence."""

    group: dist.ProcessGroup
    method: Method
    partition_name: PartitionName = "zigzag"

    @property
    def divisor(self) -> int:
        """The number that must divide the length of a sequence."""
        return self.group.size() * CHUNKS_OF_A_RANK[self.partition_name]

    def partition(self, document_BS: Tensor, *, causal: bool = True) -> Partition:
        """Which rank holds which tokens of these rows; every rank computes the same, without communication."""
        return Partition.of(document_BS, self.group.size(), self.partition_name, causal=causal)

    def positions(self, partition: Partition) -> Tensor:
        """Positions in the sequence of this rank's tokens, shape (s,)."""
        return partition.positions(partition.owners[self.group.rank()])

    def leave_uncompiled(self) -> None:
        """From now on a compiler calls `attend` as it is. (Not a decorator, which would import the compiler for every run.)"""
        self.attend = torch.compiler.disable(self.attend)  # type: ignore[method-assign]

    def take(self, batch: Batch) -> Batch:
        """This rank's tokens and targets of a micro-batch, and the document numbers of whole sequences."""
        partition, rank = self.partition(batch.document_BS), self.group.rank()
        return Batch(partition.take(batch.tokens_BS, rank), partition.take(batch.targets_BS, rank), batch.document_BS)

    def attend(self, query_BHsD: Tensor, key_BKsD: Tensor, value_BKsD: Tensor, partition: Partition, scale: float) -> Tensor:
        """Attention of this rank's queries to the keys of all ranks, within documents: (B, H, s, D). A collective."""
        if self.method == "ulysses":
            return ulysses_attention(query_BHsD, key_BKsD, value_BKsD, partition, scale, self.group)
        local = LocalAttention(partition, scale)
        if self.method == "token_ring":
            return token_ring_attention(query_BHsD, key_BKsD, value_BKsD, local, self.group)
        if self.method == "ring" or self.method == "ring_bidirectional":
            bidirectional = self.method == "ring_bidirectional"
            return ring_attention(query_BHsD, key_BKsD, value_BKsD, local, self.group, bidirectional=bidirectional)
        assert_never(self.method)
