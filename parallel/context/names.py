"""The words of context parallelism that a configuration has, without torch."""

from typing import Literal

Method = Literal["token_ring", "ring", "ring_bidirectional", "ulysses"]
PartitionName = Literal["contiguous", "zigzag", "balanced"]

CHUNKS_OF_A_RANK: dict[PartitionName, int] = {"contiguous": 2, "zigzag": 2, "balanced": 8}
"""Into how many chunks of equal length a rank's part of a sequence falls."""
