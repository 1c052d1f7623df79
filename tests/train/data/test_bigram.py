"""The vectorised bigram against a dictionary per context."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from train.data import bigram
from train.data.bigram import bigram_loss


def slow_bigram_loss(train: list[int], validation: list[int], vocab_size: int) -> float:
    unigram = Counter(train)
    followers: dict[int, Counter[int]] = {}
    for context, token in itertools.pairwise(train):
        followers.setdefault(context, Counter())[token] += 1
    total = 0.0
    for context, token in itertools.pairwise(validation):
        fallback = (unigram[token] + 1) / (len(train) + vocab_size)
        seen = followers.get(context, Counter())
        if seen:
            share = seen.total() / (seen.total() + len(seen))
            total -= math.log(share * seen[token] / seen.total() + (1 - share) * fallback)
        else:
            total -= math.log(fallback)
    return total / (len(validation) - 1)


@pytest.mark.parametrize("vocab_size", [5, 40, 100_000])
@pytest.mark.parametrize("length", [1, 2, 700])
def test_against_slow_reference(make_stream, monkeypatch, vocab_size, length):
    monkeypatch.setattr(bigram, "_CHUNK_TOKENS", 64)
    generator = np.random.default_rng(vocab_size)
    train = (vocab_size * generator.random(length) ** 2).astype(int).tolist()
    validation = generator.integers(0, vocab_size, 200).tolist()
    found = bigram_loss(make_stream([train]), make_stream([validation]), vocab_size)
    assert found == pytest.approx(slow_bigram_loss(train, validation, vocab_size), rel=1e-12)


def test_probabilities_sum_to_one(make_stream):
    vocab_size, train = 6, [0, 1, 2, 1, 2, 3, 0, 1, 1]
    for context in range(vocab_size):
        losses = [bigram_loss(make_stream([train]), make_stream([[context, token]]), vocab_size) for token in range(6)]
        assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1)


def test_counts_only_the_first_tokens(make_stream, monkeypatch):
    monkeypatch.setattr(bigram, "COUNTED_TOKENS", 50)
    train, validation = [1, 2] * 25 + [3, 4] * 100, [1, 2, 3, 4, 1]
    found = bigram_loss(make_stream([train]), make_stream([validation]), 5)
    assert found == pytest.approx(slow_bigram_loss(train[:50], validation, 5))
