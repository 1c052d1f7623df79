"""The loss of a counted bigram: a model that beats it has learned more than pairs of tokens."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

COUNTED_TOKENS = 20_000_000
_CHUNK_TOKENS = 1 << 20


class Tokens(Protocol):
    """A stream of tokens."""

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        ...

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Tokens start to stop."""
        ...


def bigram_loss(train: Tokens, validation: Tokens, vocab_size: int) -> float:
    """Nats per validation token (all but the first) under an interpolated bigram that is counted on the training tokens.

    Witten-Bell smoothing (Witten & Bell, IEEE Trans. Inf. Theory 37(4), 1991; Chen & Goodman, 1999, section 2.5):
    with c(h, w) the count of w after h, N(h) the count of h as a context, T(h) the number of different tokens after
    h, p(w | h) = (c(h, w) + T(h) p(w)) / (N(h) + T(h)), that is lambda = N / (N + T), and p(w) the add-one unigram;
    p(w | h) = p(w) for a context never seen. Counts come from at most the first 20 million tokens. Memory grows with
    the number of different pairs seen, never with the square of the vocabulary.
    """
    tokens = train.read(0, min(train.tokens, COUNTED_TOKENS))
    unigram = np.bincount(tokens, minlength=vocab_size) + 1
    unigram_probability = unigram / unigram.sum()
    context_count = np.bincount(tokens[:-1], minlength=vocab_size)
    pair_keys, pair_counts = np.unique(tokens[:-1] * vocab_size + tokens[1:], return_counts=True)
    followers = np.bincount(pair_keys // vocab_size, minlength=vocab_size)
    total = 0.0
    for start in range(0, validation.tokens - 1, _CHUNK_TOKENS):
        window = validation.read(start, min(start + _CHUNK_TOKENS + 1, validation.tokens))
        context, token = window[:-1], window[1:]
        keys = context * vocab_size + token
        nearest = np.minimum(np.searchsorted(pair_keys, keys), max(len(pair_keys) - 1, 0))
        count = np.where(pair_keys[nearest] == keys, pair_counts[nearest], 0) if len(pair_keys) else 0
        weight = context_count[context] + followers[context]
        unigram_p = unigram_probability[token]
        probability = np.where(weight > 0, (count + followers[context] * unigram_p) / np.maximum(weight, 1), unigram_p)
        total -= float(np.log(probability).sum())
    return total / (validation.tokens - 1)
