"""What a configuration must know about context parallelism: names, and what must divide what. Standard library only."""

from typing import Literal

Method = Literal["token_ring", "ring", "ring_bidirectional", "ulysses"]
PartitionName = Literal["contiguous", "zigzag", "balanced"]

CHUNKS_OF_A_RANK: dict[PartitionName, int] = {"contiguous": 2, "zigzag": 2, "balanced": 8}
"""Number of equally long chunks in a rank's part of a sequence."""


def heads_divide(num_heads: int, num_kv_heads: int, ranks: int) -> bool:
    """Whether Ulysses can divide these heads: every rank gets equally many query heads, and the key/value heads they need."""
    return num_heads % ranks == 0 and (num_kv_heads % ranks == 0 or (num_kv_heads > 0 and ranks % num_kv_heads == 0))
