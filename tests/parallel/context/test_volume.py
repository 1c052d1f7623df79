"""What travels, in bytes, and how evenly the work is spread."""

from collections import Counter

import pytest
import torch

from parallel.context.choose import METHODS, AttentionCall, obstacle, steps
from parallel.context.partition import Partition
from tests.support import context_attention

BATCH, HEADS, SEQUENCE, HEAD_DIM, BYTES = 1, 4, 96, 8, 4


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_bytes_are_those_of_the_formulas(group, ranks):
    """Forward, causal, zigzag, a float32 wire (e = 4); s tokens a rank, P ranks (arXiv 2412.20501 and its public code).

    Ring: (P - 1) 2 s Hkv e one way. Both ways: half of that each. TokenRing: 0.75 (P - 1) s Hq e of queries one way, and as
    much of outputs with 4 bytes of log-sum-exp for each head and token, averaged over ranks; straight to their owners.
    """
    methods = [("ring", 4), ("ring", 1), ("ring_bidirectional", 4), ("token_ring", 4), ("token_ring", 1)]
    runs = [{"method": method, "shape": (BATCH, HEADS, kv, SEQUENCE, HEAD_DIM)} for method, kv in methods]
    by_rank = group(ranks).run(context_attention.bytes_sent, runs)
    local = SEQUENCE // ranks
    for number, (method, kv_heads) in enumerate(methods):
        sent = [total(found[number][0]) for found in by_rank]
        mean = sum(sum(to.values()) for to in sent) / ranks
        keys = (ranks - 1) * 2 * local * kv_heads * HEAD_DIM * BYTES
        queries = 0.75 * (ranks - 1) * local * HEADS * HEAD_DIM * BYTES
        if method == "token_ring":
            assert mean == queries + queries + 0.75 * (ranks - 1) * local * HEADS * 4
            continue
        # What no later rank needs stays: under a causal mask the last rank's late chunk, for one.
        assert keys * 0.5 <= mean <= keys
        for rank, to in enumerate(sent):
            towards = {(rank + 1) % ranks, (rank - 1) % ranks} if method == "ring_bidirectional" else {(rank + 1) % ranks}
            assert set(to) <= towards
            if method == "ring_bidirectional" and ranks > 2:
                assert max(to.values()) <= keys / 2


def total(steps: list[dict[int, int]]) -> dict[int, int]:
    """Rank -> bytes, of all steps together."""
    return dict(sum((Counter(step) for step in steps), Counter()))


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_the_cost_model_has_the_messages_that_are_sent(group, ranks):
    """Step by step, from rank to rank, forward and backward, grouped heads, both kinds of mask and two dtypes."""
    calls = [
        AttentionCall(ranks, SEQUENCE, heads, kv_heads, HEAD_DIM, batch=2, element_bytes=element_bytes, causal=causal)
        for heads, kv_heads, element_bytes, causal in ((24, 24, 4, True), (24, 6, 2, True), (24, 1, 2, False))
    ]
    runs = [(method, call) for method in METHODS for call in calls if not obstacle(method, call)]
    by_rank = group(ranks).run(
        context_attention.bytes_sent,
        [
            {
                "method": method,
                "shape": (call.batch, call.heads, call.kv_heads, SEQUENCE, HEAD_DIM),
                "dtype": "bfloat16" if call.element_bytes == 2 else "float32",
                "causal": call.causal,
            }
            for method, call in runs
        ],
    )
    for number, (method, call) in enumerate(runs):
        for which, backward in enumerate((False, True)):
            sent = [
                {(rank, to): size for rank, found in enumerate(by_rank) for to, size in found[number][which][step].items()}
                for step in range(len(by_rank[0][number][which]))
            ]
            predicted = []
            for step in steps(method, call, backward=backward):
                messages = Counter()
                for source, target, size in step.messages:
                    messages[source, target] += size
                predicted.append({ends: size for ends, size in messages.items() if size})
            assert [step for step in predicted if step] == [step for step in sent if step], (method, call, backward)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_zigzag_is_balanced_without_documents_and_balanced_with_them(ranks):
    one = torch.zeros(1, 4096, dtype=torch.int64)
    assert Partition.of(one, ranks, "zigzag").imbalance() < 1.02
    assert Partition.of(one, ranks, "contiguous").imbalance() > 1.3
    found = {name: [] for name in ("contiguous", "zigzag", "balanced")}
    for seed in range(20):
        for name, values in found.items():
            values.append(Partition.of(context_attention.packed(4096, 150, seed), ranks, name).imbalance())
    means = {name: sum(values) / len(values) for name, values in found.items()}
    assert means["balanced"] < 1.06, means
    assert means["balanced"] < means["zigzag"] < means["contiguous"], means


def test_work_counts_the_pairs_that_a_mask_allows():
    for causal in (True, False):
        documents = context_attention.packed(240, 150, 3)
        partition = Partition.of(documents, 3, "zigzag" if causal else "contiguous", causal=causal)
        seen = documents[0][:, None] == documents[0]
        seen = seen.tril() if causal else seen
        for chunks, work in zip(partition.owners, partition.work(), strict=True):
            assert seen[partition.positions(chunks)].sum() == work


def test_taking_apart_and_restoring():
    tokens = torch.arange(2 * 96).view(2, 96)
    for name in ("contiguous", "zigzag", "balanced"):
        partition = Partition.of(context_attention.packed(96, 20, 1).expand(2, 96), 2, name)
        parts = [partition.take(tokens, rank) for rank in range(2)]
        assert all(part.shape == (2, 48) for part in parts)
        assert torch.equal(partition.restore(parts), tokens)
