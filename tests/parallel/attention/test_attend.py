"""Attention over pieces against dense attention under a mask, in float64."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from parallel.attention import kernels, plan
from parallel.attention.attend import attend, backward, forward
from parallel.attention.pieces import between_stretches, document_spans, within_documents
from parallel.attention.plan import encode, plan_of

SCALE = 0.3


def packed(rows: int, sequence: int, median: float, seed: int) -> torch.Tensor:
    """Documents of log-normal lengths, ascending along every row."""
    draw, numbers = random.Random(seed), []
    for _ in range(rows):
        row: list[int] = []
        while len(row) < sequence:
            row += [row[-1] + 1 if row else 0] * max(1, round(median * draw.lognormvariate(0, 1.2)))
        numbers.append(row[:sequence])
    return torch.tensor(numbers)


def tensors(rows, heads, kv_heads, sequence, head_dim, seed=0) -> list[torch.Tensor]:
    """Query, key, value and the gradient of the output."""
    draw = torch.Generator().manual_seed(seed)
    sizes = [heads, kv_heads, kv_heads, heads]
    return [torch.randn(rows, number, sequence, head_dim, generator=draw, dtype=torch.float64) for number in sizes]


def dense(query, key, value, gradient, visible) -> list[torch.Tensor]:
    """Output and gradients under a mask (B, q, k)."""
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    expanded = [leaf.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for leaf in leaves[1:]]
    scores = (leaves[0] @ expanded[0].mT * SCALE).masked_fill(~visible[:, None], float("-inf"))
    output = scores.softmax(dim=-1).nan_to_num(0.0) @ expanded[1]
    output.backward(gradient)
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def causal(documents: torch.Tensor) -> torch.Tensor:
    return (documents[:, :, None] == documents[:, None, :]).tril()


SHAPES = {  # rows, heads, key/value heads, sequence, head_dim, median length
    "packed": (2, 4, 2, 96, 8, 10),
    "one_document": (3, 4, 4, 64, 7, 10_000),
    "one_kv_head": (1, 4, 1, 512, 16, 60),
    "short_and_long": (2, 2, 2, 700, 8, 40),
    "single_tokens": (2, 2, 1, 40, 5, 0.3),
}


@pytest.mark.parametrize("plain", [False, True], ids=["fused", "plain"])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_dense_attention(shape, plain, monkeypatch):
    if plain:
        monkeypatch.setattr(kernels, "_chosen", "plain")
        monkeypatch.setattr(kernels, "TILE", 37)
    rows, heads, kv_heads, sequence, head_dim, median = SHAPES[shape]
    documents = packed(rows, sequence, median, 1)
    query, key, value, gradient = tensors(rows, heads, kv_heads, sequence, head_dim)
    expected = dense(query, key, value, gradient, causal(documents))
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    output = attend(*leaves, encode(within_documents(documents)), SCALE)
    output.backward(gradient)
    for computed, wanted in zip([output, *(leaf.grad for leaf in leaves)], expected, strict=True):
        assert (computed - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("is_causal", [True, False])
def test_stretches_see_what_a_mask_shows(is_causal):
    """Some stretches of the queries, others of the keys: triangles, rectangles, and queries that see nothing."""
    sequence = 96
    documents = packed(2, sequence, 20, 4)
    query, key, value, gradient = tensors(2, 4, 2, sequence, 8)
    for its_queries, its_keys in (
        ([(0, 24), (48, 72)], [(0, 48)]),
        ([(24, 48), (48, 96)], [(12, 36), (60, 84)]),
        ([(0, 96)], [(0, 96)]),
    ):
        rows, columns = (torch.cat([torch.arange(*span) for span in spans]) for spans in (its_queries, its_keys))
        visible = documents[:, rows, None] == documents[:, None, columns]
        visible = visible & (rows[:, None] >= columns) if is_causal else visible
        part = query[:, :, rows], key[:, :, columns], value[:, :, columns]
        expected = dense(*part, gradient[:, :, rows], visible)
        pieces = encode(between_stretches(document_spans(documents), its_queries, its_keys, causal=is_causal))
        output, lse = forward(*part, pieces, SCALE)
        assert torch.equal(lse == float("-inf"), ~visible.any(dim=-1)[:, None].expand_as(lse))
        lse = lse.masked_fill(lse == float("-inf"), 0.0)
        computed = output, *backward(gradient[:, :, rows], *part, output, lse, pieces, SCALE)
        for one, other in zip(computed, expected, strict=True):
            assert (one - other).abs().max() < 1e-12


def test_gradients_are_added_to_totals():
    documents = packed(1, 64, 20, 2)
    query, key, value, gradient = tensors(1, 2, 2, 64, 8)
    pieces = encode(within_documents(documents))
    output, lse = forward(query, key, value, pieces, SCALE)
    alone = backward(gradient, query, key, value, output, lse, pieces, SCALE)
    totals = tuple(torch.ones_like(tensor) for tensor in (query, key, value))
    added = backward(gradient, query, key, value, output, lse, pieces, SCALE, totals)
    assert all(torch.allclose(total, part + 1, atol=1e-14) for total, part in zip(added, alone, strict=True))
    assert all(one is other for one, other in zip(added, totals, strict=True))


def test_short_documents_are_few_calls_and_long_ones_their_own():
    documents = torch.tensor([[0] * 30 + [1] * 31 + [2] * 300 + [3] * 20 + [4] * 131])
    calls = plan_of(encode(within_documents(documents)), 1, 512, 512, documents.device).calls
    assert len(calls) == 3  # three short ones together; 131 and 300 alone
    whole = torch.zeros(4, 512, dtype=torch.int64)
    assert plan_of(encode(within_documents(whole)), 4, 512, 512, whole.device).whole


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_spans_are_the_documents(lengths):
    row = [number for number, length in enumerate(lengths) for _ in range(length)]
    (spans,) = document_spans(torch.tensor([row]))
    assert [stop - start for start, stop in spans] == lengths
    assert [start for start, _ in spans] == [sum(lengths[:number]) for number in range(len(lengths))]


def test_padding_of_short_documents_leaks_nothing():
    """Documents of one length need no padding; with one token less, what is padded must not count."""
    for length in (plan._STEP, plan._STEP - 1):
        documents = torch.arange(4 * length)[None] // length
        query, key, value, gradient = tensors(1, 2, 1, 4 * length, 8, seed=length)
        expected = dense(query, key, value, gradient, causal(documents))
        pieces = encode(within_documents(documents))
        assert len(plan_of(pieces, 1, 4 * length, 4 * length, documents.device).calls) == 1
        output, lse = forward(query, key, value, pieces, SCALE)
        computed = output, *backward(gradient, query, key, value, output, lse, pieces, SCALE)
        assert all((one - other).abs().max() < 1e-12 for one, other in zip(computed, expected, strict=True))


def test_compiled_code_has_one_graph_whatever_the_documents():
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = torch.compile(lambda query, key, value, pieces: attend(query * 1.0, key, value, pieces, SCALE), fullgraph=True)
    for median in (10, 30, 10_000):
        documents = packed(2, 96, median, 3)
        query, key, value, gradient = tensors(2, 4, 2, 96, 8)
        leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
        output = compiled(*leaves, encode(within_documents(documents)))
        output.backward(gradient)
        expected = dense(query, key, value, gradient, causal(documents))
        for computed, wanted in zip([output, *(leaf.grad for leaf in leaves)], expected, strict=True):
            assert (computed - wanted).abs().max() < 1e-12
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1


def test_a_kernel_that_the_device_lacks_is_refused_with_what_there_is():
    with pytest.raises(
        UserError, match=r"train\.attention=fused: there is no such kernel for cuda and float32; there is: plain"
    ):
        kernels.use("fused", "cuda", torch.float32)
    for name in ("auto", "fused", "plain"):
        kernels.use(name, "cpu", torch.float64)
    kernels.use("auto", "cuda", torch.float32)
