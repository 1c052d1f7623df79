"""What a configuration must know of context parallelism: its words, and what divides. Standard library only."""

from typing import Literal

Method = Literal["token_ring", "ring", "ring_bidirectional", "ulysses"]
PartitionName = Literal["contiguous", "zigzag", "balanced"]

CHUNKS_OF_A_RANK: dict[PartitionName, int] = {"contiguous": 2, "zigzag": 2, "balanced": 8}
"""Into how many chunks of equal length a rank's part of a sequence falls."""


def heads_divide(num_heads: int, num_kv_heads: int, ranks: int) -> bool:
    """Whether Ulysses can share these heads out: equally many query heads, and as many key/value heads as those look at."""
    return num_heads % ranks == 0 and (num_kv_heads % ranks == 0 or (num_kv_heads > 0 and ranks % num_kv_heads == 0))
