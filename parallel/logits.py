"""How many tokens' logits exist at a time: what the trainer's loss does and the planner counts. Standard library only."""

_CHUNK_BYTES_ON_CPU, _CHUNK_BYTES = 16 * 2**20, 512 * 2**20
"""What the logits of a chunk may take although the hidden states take less: enough for efficient matrix products, and on a CPU
little enough for its caches (`python -m benchmarks.loss`)."""


def chunk_of(tokens: int, hidden_size: int, vocabulary: int, *, on_cpu: bool) -> int:
    """How many of `tokens` have their logits held at a time, for `vocabulary` words of a rank.

    As many as take the bytes of all hidden states, of which a model keeps many times as much anyway, or the constant above. It
    depends on sizes alone, not on the memory that happens to be free, so that a run repeats to the bit.
    """
    budget = max(tokens * hidden_size * 4, _CHUNK_BYTES_ON_CPU if on_cpu else _CHUNK_BYTES)
    return min(max(1, tokens), max(128, budget // (4 * vocabulary) // 128 * 128))
