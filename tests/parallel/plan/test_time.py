"""Step time and pipelines against closed forms."""

from dataclasses import replace

import pytest

from parallel.plan.forecast import forecast
from parallel.plan.links import bandwidth, collective, leaves_node
from parallel.plan.recipe import BOUNDS, Constants, load_recipe, recipe_names
from parallel.plan.stages import pipeline_seconds
from parallel.plan.step_time import block_seconds, step_parts
from parallel.plan.timeline import timeline
from tests.support.plan_jobs import gpt, job

IDEAL = Constants(
    matmul_efficiency=1.0,
    matmul_half=0.0,
    attention_efficiency=1.0,
    traffic=0.0,
    node_efficiency=1.0,
    network_efficiency=1.0,
    network_decay=0.0,
    tensor_overlap=0.0,
    data_overlap=0.0,
    layer_seconds=0.0,
    hop_seconds=0.0,
    network_hop_seconds=0.0,
    message_seconds=0.0,
    step_seconds=0.0,
)


def ideal(recipe="megatron", **choice):
    one = job(recipe, **choice)
    no_traffic = replace(one.recipe, accumulation_traffic=0, optimizer_traffic=0)
    return replace(one, constants=IDEAL, recipe=no_traffic)


def test_a_device_without_losses_reaches_the_peak():
    """Then a step takes the model's FLOPs (causal attention, backward 2.5 times forward in tiles) over the peak."""
    one = ideal(microbatch=4)
    shape, sequence = one.shape, one.sequence
    tokens = one.batch_sequences * sequence
    matmul = shape.flops_per_token(sequence, causal=True) - 6 * shape.num_layers * shape.num_heads * shape.head_dim * sequence
    # Norms multiply, but not as matrix products do.
    matmul -= 6 * (2 * shape.num_layers + 1) * shape.hidden_size
    attention = 3.5 / 3 * 6 * shape.num_layers * shape.num_heads * shape.head_dim * sequence
    assert step_parts(one)["total"] == pytest.approx(tokens * (matmul + attention) / one.hardware.flops("bf16"), rel=1e-9)


def test_recomputation_costs_a_forward_pass():
    """Korthikanti et al., section 5: full recomputation makes four passes of three."""
    parts = block_seconds(ideal(recompute="full"))
    assert parts["recompute"] == pytest.approx(parts["products"] / 3 + parts["attention"] / 3.5)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_bubble_is_narayanans(ranks):
    """Narayanan et al. (arXiv 2104.04473), section 2.2: (p - 1) / m of the ideal time, over v with v chunks; zbv leaves
    none."""
    one = ideal(pipeline=ranks, microbatch=1)
    equal = [1.0] * ranks
    count = one.microbatches
    assert pipeline_seconds(one, equal) / count - 1 == pytest.approx((ranks - 1) / count)
    two = ideal(pipeline=ranks, pipeline_schedule="interleaved", virtual_stages=2)
    assert pipeline_seconds(two, equal) / count - 1 == pytest.approx((ranks - 1) / (2 * count))
    assert pipeline_seconds(ideal(pipeline=ranks, pipeline_schedule="zbv"), equal) == pytest.approx(count)


@pytest.mark.parametrize("schedule, virtual", [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 3)])
def test_the_timeline_takes_as_long_as_the_formula(schedule, virtual):
    """Two computations of the same: ranks that work through their orders, and the closed form. The head is left out of
    neither."""
    one = ideal("native", pipeline=4, pipeline_schedule=schedule, virtual_stages=virtual, shape=gpt(48, 6144, 64, 64))
    short = replace(one, batch_sequences=16)
    end = max(bar.start + bar.seconds for bar in timeline(one) if bar.what in ("forward", "backward"))
    parts = step_parts(short)
    passes = parts["total"] - parts["reduction"] - parts["optimizer"]
    assert end == pytest.approx(passes, rel=0.03)
    forwards = [bar for bar in timeline(one) if bar.what == "forward"]
    assert len(forwards) == 16 * 4 * virtual


@pytest.mark.parametrize("schedule", ["zbv", "dualpipev"])
def test_every_rank_of_a_v_runs_every_microbatch_twice(schedule):
    bars = timeline(ideal("native", pipeline=4, pipeline_schedule=schedule))
    for rank in range(4):
        assert [bar.what for bar in bars if bar.rank == rank].count("backward") == 32


def test_a_ring_moves_its_share_over_the_slowest_link():
    one = ideal(tensor=8)
    assert bandwidth(one, 8, 1) == 300e9
    assert collective(one, 8e9, 8, 1, "all_gather") == pytest.approx(8e9 * 7 / 8 / 300e9)
    assert collective(one, 8e9, 8, 1, "all_reduce") == pytest.approx(2 * 8e9 * 7 / 8 / 300e9)
    # Between nodes: as many ports as the group has members in a node.
    assert not leaves_node(one, 8, 1)
    assert leaves_node(one, 16, 1)
    assert bandwidth(one, 16, 1) == 8 * 25e9
    assert bandwidth(one, 4, 8) == 25e9


def test_what_is_slower_is_never_predicted_faster():
    base = job("megatron", tensor=8, pipeline=2, shard=2, zero=1)
    time = step_parts(base)["total"]
    for constant in ("matmul_efficiency", "attention_efficiency", "node_efficiency", "network_efficiency"):
        slower = replace(base, constants=replace(base.constants, **{constant: getattr(base.constants, constant) / 2}))
        assert step_parts(slower)["total"] > time
    for constant in ("traffic", "layer_seconds", "message_seconds", "step_seconds", "matmul_half"):
        slower = replace(base, constants=replace(base.constants, **{constant: 30 * getattr(base.constants, constant) + 1e-3}))
        assert step_parts(slower)["total"] > time


def test_mfu_and_speed_agree():
    said = forecast(job("megatron", tensor=8, pipeline=2, shard=2, zero=1))
    tokens = said.job.batch_sequences * said.job.sequence
    assert said.tokens_per_second_per_gpu == pytest.approx(tokens / said.step_seconds / 32)
    flops = said.job.shape.flops_per_token(said.job.sequence)
    assert said.mfu == pytest.approx(said.tokens_per_second_per_gpu * flops / 312e12)
    assert sum(value for name, value in said.seconds.items() if name != "total") == pytest.approx(said.step_seconds)


@pytest.mark.parametrize("name", recipe_names())
def test_every_fitted_constant_is_within_its_bounds(name):
    recipe = load_recipe(name)
    for machine, values in recipe.constants.items():
        fabrics = values.get("fabrics", {}).values()
        for constants in ({key: value for key, value in values.items() if key != "fabrics"}, *fabrics):
            for constant, value in constants.items():
                low, high, _ = BOUNDS[constant]
                assert low <= value <= high, (name, machine, constant)
