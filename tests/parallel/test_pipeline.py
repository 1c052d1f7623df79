"""Where a model is cut, and which rank holds what."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.names import stage_count
from parallel.shape import ModelShape
from parallel.stages import cut, rank_of_stage


def shape(num_layers: int, vocab_size: int = 1000) -> ModelShape:
    return ModelShape(
        num_layers=num_layers, hidden_size=64, num_heads=4, num_kv_heads=4, head_dim=16, ffn_size=128, vocab_size=vocab_size,
        ffn="swiglu", tie_embeddings=False, qk_norm=False,
    )  # fmt: skip


@given(layers=st.integers(1, 9), stages=st.integers(1, 6), vocab=st.sampled_from([10, 1000, 5000, 50000]))
def test_the_costliest_stage_is_as_cheap_as_any_cut_can_make_it(layers, stages, vocab):
    if stages > layers:
        return
    model = shape(layers, vocab)
    layer, head = model.layer_flops_per_token(32), model.head_flops_per_token()

    def costliest(sizes):
        return max(size * layer + (head if index == stages - 1 else 0) for index, size in enumerate(sizes))

    found = cut(model, 32, stages)
    assert [number for stage in found for number in stage.layers] == list(range(layers))
    assert [(stage.first, stage.last) for stage in found] == [(i == 0, i == stages - 1) for i in range(stages)]
    borders = itertools.combinations(range(1, layers), stages - 1)
    every = [[stop - start for start, stop in itertools.pairwise([0, *inner, layers])] for inner in borders]
    assert costliest([len(stage.layers) for stage in found]) == pytest.approx(min(map(costliest, every)))


def test_layer_and_head_make_up_the_model():
    model = shape(5)
    norms = 6.0 * (2 * 5 * 64 + 64)
    assert model.flops_per_token(32) == 5 * model.layer_flops_per_token(32) + model.head_flops_per_token() + norms


@pytest.mark.parametrize(
    "schedule, owners",
    [("1f1b", [0, 1, 2]), ("gpipe", [0, 1, 2]), ("interleaved", [0, 1, 2, 0, 1, 2]), ("zbv", [0, 1, 2, 2, 1, 0])],
)
def test_stages_lie_in_a_loop_or_there_and_back(schedule, owners):
    assert stage_count(3, schedule, 2) == len(owners)
    assert [rank_of_stage(stage, 3, schedule) for stage in range(len(owners))] == owners
    assert stage_count(1, schedule, 2) == 1
