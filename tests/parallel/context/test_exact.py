"""Every method against dense attention in float64: outputs and gradients, packed documents, grouped heads."""

import itertools
import random

import pytest
import torch

from parallel.context.partition import Partition
from parallel.context.ulysses import heads_of_ranks
from tests.support import context_attention

METHODS = ("token_ring", "ring", "ring_bidirectional", "ulysses")
SEQUENCE = 96


def packed(seed: int) -> list[int]:
    """Random documents, some of a single token."""
    draw, ids = random.Random(seed), []
    while len(ids) < SEQUENCE:
        ids += [ids[-1] + 1 if ids else 0] * draw.choice((1, 1, 2, 5, 9, 30))
    return ids[:SEQUENCE]


DOCUMENTS = {
    "one": [0] * SEQUENCE,
    "packed": packed(1),
    "short_then_long": [0, 1, 1] + [2] * (SEQUENCE - 3),
    "aligned": [position // 12 for position in range(SEQUENCE)],
}


def runs(ranks: int, stride: int, dtype: str) -> list[dict]:
    """Every one of `stride`, an odd number: it shares no factor with the numbers of choices, so that every choice comes."""
    found = []
    for method, (name, documents) in itertools.product(METHODS, DOCUMENTS.items()):
        for kv_heads, head_dim in ((8, 8), (4, 5), (2, 7), (1, 8)):
            for partition, causal in (("zigzag", True), ("contiguous", True), ("balanced", True), ("contiguous", False)):
                if partition == "balanced" and (SEQUENCE % (8 * ranks) or name == "one"):
                    continue
                found.append(
                    {
                        "method": method,
                        "partition": partition,
                        "shape": (2, 8, kv_heads, SEQUENCE, head_dim),
                        "documents": documents,
                        "causal": causal,
                        "dtype": dtype,
                        "seed": len(found),
                        "short": 7 if len(found) % 2 else 256,  # documents one by one, and together
                    }
                )
    return found[::stride]


BOUNDS = {"float64": (1e-10, 1e-10), "float32": (1e-5, 1e-4)}  # of output, of gradients


@pytest.mark.parametrize(
    "ranks, dtype, stride",
    [
        *[(ranks, "float64", 5 if ranks < 8 else 11) for ranks in (1, 2, 3, 4, 8)],
        *[(ranks, "float32", 17) for ranks in (1, 2, 3, 4, 8)],
        *[pytest.param(ranks, "float64", 1, marks=pytest.mark.slow) for ranks in (1, 2, 3, 4, 8)],
    ],
)
def test_every_method_equals_dense_attention(group, ranks, dtype, stride):
    every = [run for run in runs(ranks, stride, dtype) if not (ranks == 3 and run["method"] == "ulysses")]
    output, gradients = BOUNDS[dtype]
    for errors in group(ranks).run(context_attention.attend, every, timeout=300.0):
        for run, found in zip(every, errors, strict=True):
            assert found[0] < output, (run, found)
            assert max(found[1:]) < gradients, (run, found)


def test_what_no_method_can_divide_is_an_error_with_its_numbers():
    documents = torch.zeros(1, 60, dtype=torch.int64)
    with pytest.raises(ValueError, match="60 tokens is not divisible by the 8 chunks of 4 ranks"):
        Partition.of(documents, 4, "zigzag")
    with pytest.raises(ValueError, match="zigzag balances a causal mask"):
        Partition.of(documents, 3, "zigzag", causal=False)
    with pytest.raises(ValueError, match="6 query and 3 key/value heads do not divide among 2 ranks"):
        heads_of_ranks(6, 3, 2, documents.device)


@pytest.mark.parametrize(
    "ranks, sequence, head_dim",
    [(8, 128, 32), *(pytest.param(ranks, 512, 64, marks=pytest.mark.slow) for ranks in (2, 4, 8))],
)
def test_the_error_in_bf16_does_not_grow_with_the_ranks(group, ranks, sequence, head_dim):
    """More ranks merge more partial results, which travel in bf16.

    Their rounding errors count by their shares of the result, which sum to one: together they are at most as large as that of
    rounding the result itself, which is there for a single rank too, and independent of it. Hence the square root of two.
    """
    alone, found = (context_attention.relative_errors(group(size), METHODS, sequence, head_dim) for size in (1, ranks))
    for method in METHODS:
        for error, least in zip(found[method], alone[method], strict=True):
            assert error < 2**0.5 * least, method
