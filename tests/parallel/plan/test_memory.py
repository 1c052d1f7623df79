"""Memory by part against published formulas and counts."""

from dataclasses import replace

import pytest

from parallel.plan.counting import block_bytes, held_parameters, layer_parameters
from parallel.plan.memory import memory, rank_memory
from parallel.plan.stages import contents, in_flight
from tests.support.plan_jobs import gpt, job


@pytest.mark.parametrize("tensor", [1, 2, 8])
@pytest.mark.parametrize("microbatch", [1, 4])
def test_korthikantis_bytes_of_a_block(tensor, microbatch):
    """Korthikanti et al. (arXiv 2205.05198), table 2: its rows, to rounding."""
    s, b, h, a, t = 2048, microbatch, 6144, 64, tensor
    sizes = {"tensor": tensor, "microbatch": microbatch}
    whole, tiled = "megatron-2021", "megatron"
    assert block_bytes(job(whole, False, **sizes)) == pytest.approx(s * b * h * (10 + 24 / t + 5 * a * s / (h * t)), rel=1e-12)
    assert block_bytes(job(whole, True, **sizes)) == pytest.approx(s * b * h / t * (34 + 5 * a * s / h), rel=1e-12)
    assert block_bytes(job(whole, False, recompute="selective", **sizes)) == pytest.approx(s * b * h * (10 + 24 / t), rel=1e-12)
    assert block_bytes(job(whole, True, recompute="selective", **sizes)) == pytest.approx(34 * s * b * h / t, rel=1e-12)
    assert block_bytes(job(whole, False, recompute="full", **sizes)) == pytest.approx(2 * s * b * h, rel=1e-12)
    # Attention in tiles keeps no scores, but a statistic per head and token.
    assert block_bytes(job(tiled, True, **sizes)) == pytest.approx(34 * s * b * h / t + 4 * a * s * b / t, rel=1e-12)


def test_korthikantis_activations_of_a_first_stage():
    """Section 4.2.3: the first stage of 1F1B keeps L layers whatever p; interleaving multiplies by 1 + (p - 1) / (p m)."""
    shape = gpt(96, 12288, 96)
    for ranks in (2, 4, 8):
        one = job("megatron", shape=shape, pipeline=ranks)
        held = contents(one)[0].layers * in_flight(one, 0)
        assert held == 96
        two = job("megatron", shape=shape, pipeline=ranks, pipeline_schedule="interleaved", virtual_stages=3)
        assert contents(two)[0].layers * in_flight(two, 0) == pytest.approx(96 * (1 + (ranks - 1) / (ranks * 3)))


def test_states_are_those_of_the_zero_paper():
    """Rajbhandari et al. (arXiv 1910.02054), figure 1: a model of 7.5 B on 64 ranks, 120, 31.4, 16.6 and 1.9 GB."""
    shape = gpt(64, 3072, 24)
    whole = held_parameters(shape, contents(job("deepspeed", shape=shape))[0])
    for zero, gigabytes in ((0, 120), (1, 31.4), (2, 16.6), (3, 1.9)):
        data = {"replicate": 64} if zero == 0 else {"shard": 64}
        parts = rank_memory(job("deepspeed", shape=shape, zero=zero, **data))
        states = parts["weights"] + parts["gradients"] + parts["optimizer"]
        assert states / whole * 7.5 == pytest.approx(gigabytes, rel=0.02)


def test_the_distributed_optimizer_keeps_six_and_twelve_over_d():
    """Megatron-Core's documentation: 18 bytes per parameter; 6 + 12/d with the distributed optimizer."""
    for zero, data, expected in ((0, {"replicate": 8}, 18), (1, {"shard": 8}, 6 + 12 / 8)):
        one = job("megatron", zero=zero, **data)
        parts = rank_memory(one)
        states = parts["weights"] + parts["gradients"] + parts["optimizer"]
        assert states == pytest.approx(expected * held_parameters(one.shape, contents(one)[0]))


def test_stages_hold_the_whole_model_once():
    for recipe in ("nanotron", "megatron", "native", "deepspeed"):
        for ranks in (1, 2, 4, 8):
            shape = replace(gpt(16, 2048, 32, 131072), tie_embeddings=False, ffn="swiglu")
            held = contents(job(recipe, shape=shape, pipeline=ranks))
            assert sum(held_parameters(shape, content) for content in held) == shape.parameters
            assert sum(content.layers for content in held) == 16
            assert [content.head for content in held].count(True) == 1


def test_layers_are_cut_as_nanotron_cuts_them():
    """1B of its sweep: a head costs as much as four of 16 layers, so eight ranks close stages at 2.5, 5, ... of 20."""
    shape = replace(gpt(16, 2048, 32, 131072), ffn="swiglu")
    assert [content.layers for content in contents(job("nanotron", shape=shape, pipeline=8))] == [3, 2, 3, 2, 3, 2, 1, 0]
    assert [content.layers for content in contents(job("nanotron", shape=shape, pipeline=2))] == [10, 6]


def test_more_of_anything_never_needs_less():
    base = job("native", shape=replace(gpt(16, 2048, 16), tie_embeddings=False), zero=3, shard=2, tensor=2)
    total = memory(base)["total"]
    for change in ({"microbatch": 2}, {"shard": 1}, {"tensor": 1}):
        assert memory(replace(base, choice=replace(base.choice, **change)))["total"] > total
    assert memory(replace(base, choice=replace(base.choice, recompute="full")))["total"] < total


def test_a_block_has_as_many_parameters_as_the_shape_says():
    shape = replace(gpt(2, 64, 4), num_kv_heads=2, qk_norm=True)
    both = 2 * layer_parameters(shape) + shape.parameters_embedding + shape.hidden_size
    assert both == shape.parameters
