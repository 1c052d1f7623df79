"""One loss on every layout: losses and gradient norms of eight steps equal those of a bare single-process loop."""

import math

import numpy as np
import pytest

from common.errors import UserError
from tests.support import reference, whole_runs
from train.config import load_config, require
from train.data.prepare import prepare
from train.data.shards import open_shards

TOLERANCE = {"fp64": 1e-10, "fp32": 1e-5}  # relative

# A layout is its axes and, for pipelines, the schedule; its world size is the product of the axes.
SINGLE: dict[str, object] = {}
DATA = {
    "single": SINGLE,
    "replicate2": {"replicate": 2},
    "shard2": {"shard": 2},
    "replicate2_shard2": {"replicate": 2, "shard": 2},
}
PIPELINE = {
    f"pipeline{ranks}_{schedule}": {"pipeline": ranks, "pipeline_schedule": schedule}
    for ranks in (2, 4)
    for schedule in ("gpipe", "1f1b", "interleaved", "zbv", "dualpipev")
}
COMPOSED = {
    "tensor2": {"tensor": 2},
    "tensor2_shard2": {"tensor": 2, "shard": 2},
    "tensor2_pipeline2": {"tensor": 2, "pipeline": 2},
    "pipeline2_shard2": {"pipeline": 2, "shard": 2},
    "pipeline2_shard2_zbv": {"pipeline": 2, "shard": 2, "pipeline_schedule": "zbv"},
    "tensor2_pipeline2_shard2": {"tensor": 2, "pipeline": 2, "shard": 2},
    "replicate2_shard2_tensor2": {"replicate": 2, "shard": 2, "tensor": 2},
}
# Ranks that share sequences, whose documents begin and end anywhere.
CONTEXT = {
    "context2": {"context": 2},
    "context4": {"context": 4},
    "context2_tensor2": {"context": 2, "tensor": 2},
    "context2_shard2": {"context": 2, "shard": 2},
    "context2_replicate2": {"context": 2, "replicate": 2},
    "context2_pipeline2": {"context": 2, "pipeline": 2},
    "context2_pipeline2_zbv": {"context": 2, "pipeline": 2, "pipeline_schedule": "zbv"},
}
MORE_CONTEXT = {
    "context4_tensor2": {"context": 4, "tensor": 2},
    "context2_tensor2_shard2": {"context": 2, "tensor": 2, "shard": 2},
    "context2_tensor2_pipeline2": {"context": 2, "tensor": 2, "pipeline": 2},
    "context2_pipeline2_shard2": {"context": 2, "pipeline": 2, "shard": 2},
    **{
        f"context2_pipeline2_{schedule}": {"context": 2, "pipeline": 2, "pipeline_schedule": schedule}
        for schedule in ("gpipe", "interleaved", "dualpipev")
    },
}
METHODS = ["token_ring", "ring", "ring_bidirectional", "ulysses"]
MODEL = [
    *("model.hidden_size=32", "model.num_heads=4", "model.num_kv_heads=2", "model.ffn_size=48"),
    *("model.vocab_size=272", "model.init_std=0.1"),
]
# 8 steps of 16 sequences of 32 tokens: warmup, a constant stretch and decay all fall into them.
LENGTH = ["train.steps=8", "train.sequence=32", "train.batch_tokens=512", "eval.tokens=600"]
# One checkpoint, at the end, and no watchdog: both have tests of their own, and these runs last a second.
LENGTH += ["checkpoint.every_tokens=1000000", "health.step_timeout_seconds=null"]
# Multipliers and rates of the whole width, not of a rank's part; four steps of half a batch, then of a whole one; a power law.
MUP = ["optimizer.mup=true", "optimizer.mup_base_width=8", "schedule=power", "schedule.a=400", "schedule.decay_shape=linear"]
SCHEDULE = ["schedule.peak=5e-3", "schedule.warmup_tokens=1024", "schedule.decay_fraction=0.25"]


@pytest.fixture(scope="module")
def expected(corpus):
    """The bare loop's losses and norms, computed once for each distinct run."""
    known: dict[tuple[str, ...], list[tuple[float, float]]] = {}

    def of(overrides: list[str]) -> list[tuple[float, float]]:
        key = tuple(overrides)
        if key not in known:
            config = load_config([*corpus, *overrides])
            known[key] = reference.losses_and_norms(config, open_shards(prepare(config.data, config.tokenizer, progress=False)))
        return known[key]

    return of


def _compare(group, corpus, expected, tmp_path, layout: dict[str, object], run: list[str], how: list[str], tolerance: float):
    """`run` is what the run computes, `how` what must make no difference."""
    _compare_all(group, corpus, expected, tmp_path, layout, [run], how, [tolerance])


def _compare_both_precisions(group, corpus, expected, tmp_path, layout: dict[str, object], how: list[str]):
    runs = [_run(precision, layers=_layers(layout)) for precision in TOLERANCE]
    _compare_all(group, corpus, expected, tmp_path, layout, runs, how, list(TOLERANCE.values()))


def _compare_all(group, corpus, expected, tmp_path, layout, runs: list[list[str]], how: list[str], tolerances: list[float]):
    _compare_each(group, corpus, expected, tmp_path, layout, runs, [how] * len(runs), tolerances)


def _compare_each(group, corpus, expected, tmp_path, layout, runs: list[list[str]], hows: list[list[str]], tolerances):
    """Several runs, one after the other in the same processes."""
    axes = [f"parallel.{key}={value}" for key, value in layout.items()]
    size = math.prod(value for value in layout.values() if isinstance(value, int))
    words = [
        [f"run.dir={tmp_path}/{number}", *corpus, *run, *axes, *how]
        for number, (run, how) in enumerate(zip(runs, hows, strict=True))
    ]
    answers = group(size).run(whole_runs.train, words, timeout=300.0)
    written = [answer for answer in answers if answer is not None]
    assert len(written) == 1
    for found, run, tolerance in zip(written[0], runs, tolerances, strict=True):
        np.testing.assert_allclose(found, expected(run), rtol=tolerance, atol=0)


def _run(precision: str, *variant: str, layers: int = 2) -> list[str]:
    return [f"model.num_layers={layers}", *MODEL, *LENGTH, *SCHEDULE, f"train.precision={precision}", *variant]


def _layers(layout: dict[str, object]) -> int:
    """As many as the layout has stages at the most: two on a rank, but for the schedules that have one."""
    ranks = int(str(layout.get("pipeline", 1)))
    return max(2, ranks if layout.get("pipeline_schedule", "1f1b") in ("1f1b", "gpipe") else 2 * ranks)


def _microbatch(layout: dict[str, object]) -> int:
    """Four micro-batches a step for a pipeline; elsewhere one pass will do, accumulation has cases of its own."""
    sizes = {axis: size for axis, size in layout.items() if isinstance(size, int)}
    rows = 16 // (sizes.get("replicate", 1) * sizes.get("shard", 1))
    return rows // 4 if "pipeline" in sizes else rows


@pytest.mark.parametrize("microbatch", [2, 4])  # on one rank: 8 and 4 micro-batches; on four: 2 and 1, no accumulation
@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("layout", DATA)
def test_data_parallel(group, corpus, expected, tmp_path, layout, precision, microbatch):
    how = [f"train.microbatch={microbatch}"]
    _compare(group, corpus, expected, tmp_path, DATA[layout], _run(precision), how, TOLERANCE[precision])


@pytest.mark.parametrize("layout", PIPELINE)
def test_pipeline_schedules(group, corpus, expected, tmp_path, layout):
    how = ["train.microbatch=4" if PIPELINE[layout]["pipeline"] == 2 else "train.microbatch=2"]  # four or eight micro-batches
    _compare_both_precisions(group, corpus, expected, tmp_path, PIPELINE[layout], how)


@pytest.mark.parametrize("layout", COMPOSED)
def test_composed(group, corpus, expected, tmp_path, layout):
    how = [f"train.microbatch={_microbatch(COMPOSED[layout])}"]
    _compare_both_precisions(group, corpus, expected, tmp_path, COMPOSED[layout], how)


CHOSEN = {
    "context2": [
        *[("fp64", [method]) for method in METHODS],
        *[(precision, ["token_ring"]) for precision in ("fp32", "bf16")],
        ("fp64", ["token_ring", "recompute=selective"]),
        ("fp64", ["auto", "context_partition=balanced", "recompute=full"]),
    ],
    "context4": [("fp64", ["token_ring"]), ("fp64", ["ring_bidirectional"]), ("fp64", ["ulysses"])],
    "context2_tensor2": [("fp64", ["token_ring"]), ("fp64", ["ulysses"])],
    "context2_shard2": [("fp64", ["ring"])],
    "context2_pipeline2": [("fp64", ["ulysses", "recompute=full"])],
    "context2_pipeline2_zbv": [("fp64", ["token_ring"])],
}


@pytest.mark.parametrize("layout", CHOSEN)
def test_context_parallel(group, corpus, expected, tmp_path, layout):
    """Every method by itself and beside another axis; the whole product is below."""
    _compare_context(group, corpus, expected, tmp_path, CONTEXT[layout], CHOSEN[layout])


def _compare_context(group, corpus, expected, tmp_path, axes, cases_of: list[tuple[str, list[str]]], *variant: str):
    """`cases_of` are pairs of a precision and a method, with more keys of the layout behind it."""
    runs, hows, tolerances = [], [], []
    for precision, (method, *more) in cases_of:
        near = precision == "bf16"  # see below
        runs.append(_run("fp32" if near else precision, *variant, layers=_layers(axes)))
        words = [f"parallel.{word}" for word in (f"context_method={method}", *more)]
        hows.append([f"train.microbatch={_microbatch(axes)}", *words, *(["train.precision=bf16"] if near else [])])
        tolerances.append(2e-2 if near else TOLERANCE[precision])
    _compare_each(group, corpus, expected, tmp_path, axes, runs, hows, tolerances)


@pytest.mark.slow
@pytest.mark.parametrize("layout", CONTEXT | MORE_CONTEXT)
@pytest.mark.parametrize("variant", [[], ["model.tie_embeddings=true", "model.qk_norm=true"], MUP], ids=len)
def test_context_parallel_in_every_way(group, corpus, expected, tmp_path, layout, variant):
    axes = (CONTEXT | MORE_CONTEXT)[layout]
    split_backward = axes.get("pipeline_schedule") in ("zbv", "dualpipev")
    choices = ["none", "full"] if split_backward else ["none", "full", "selective"]
    # With four context and two tensor ranks there are fewer heads than ranks.
    methods = METHODS[:3] if layout == "context4_tensor2" else METHODS
    cases_of = [
        (precision, [method, f"recompute={choice}"])
        for precision in (["fp64"] if variant else TOLERANCE)
        for method in methods
        for choice in choices
    ]
    _compare_context(group, corpus, expected, tmp_path, axes, cases_of, *variant)


@pytest.mark.parametrize("layout", ["pipeline2_1f1b", "pipeline2_dualpipev", "tensor2_pipeline2"])
def test_tied_embeddings(group, corpus, expected, tmp_path, layout):
    axes = (PIPELINE | COMPOSED)[layout]
    run = _run("fp64", "model.tie_embeddings=true", layers=_layers(axes))
    _compare(group, corpus, expected, tmp_path, axes, run, ["train.microbatch=4"], TOLERANCE["fp64"])


@pytest.mark.parametrize(
    "layout, choice",
    [("single", "selective"), ("single", "full"), ("tensor2_shard2", "selective"), ("pipeline2_shard2", "full")],
)
def test_recomputation(group, corpus, expected, tmp_path, layout, choice):
    axes = (DATA | COMPOSED)[layout]
    how = [f"train.microbatch={_microbatch(axes)}", f"parallel.recompute={choice}"]
    _compare(group, corpus, expected, tmp_path, axes, _run("fp64"), how, TOLERANCE["fp64"])


@pytest.mark.parametrize(
    "layout, choice, precision",
    [
        ("single", "none", "fp32"),
        ("pipeline2_1f1b", "none", "fp64"),
        pytest.param("shard2", "full", "fp64", marks=pytest.mark.slow),
        pytest.param("tensor2_shard2", "selective", "fp64", marks=pytest.mark.slow),
        pytest.param("context2", "none", "fp64", marks=pytest.mark.slow),
        pytest.param("context2", "selective", "fp64", marks=pytest.mark.slow),
        pytest.param("context2_tensor2", "full", "fp64", marks=pytest.mark.slow),
    ],
)
def test_compiled(group, corpus, expected, tmp_path, layout, choice, precision):
    axes = (DATA | PIPELINE | COMPOSED | CONTEXT)[layout]
    # One size of micro-batch, so that the layouts share their kernels.
    how = ["train.microbatch=4", "train.compile=true", f"parallel.recompute={choice}"]
    _compare(group, corpus, expected, tmp_path, axes, _run(precision), how, TOLERANCE[precision])


@pytest.mark.parametrize("layout", ["replicate2_shard2", "tensor2"])
@pytest.mark.parametrize(
    "variant",
    [
        ["model.tie_embeddings=true"],
        ["model.ffn=gelu", "model.qk_norm=false"],
        ["train.z_loss=1e-2"],
        ["optimizer.clip_norm=0.1"],
    ],
    ids=lambda variant: variant[0],
)
def test_variants_of_model_and_objective(group, corpus, expected, tmp_path, layout, variant):
    axes = (DATA | COMPOSED)[layout]
    how = [f"train.microbatch={_microbatch(axes)}"]
    _compare(group, corpus, expected, tmp_path, axes, _run("fp64", *variant), how, TOLERANCE["fp64"])


GROWING = ["train.batch_warmup_start=256", "train.batch_warmup_tokens=1024"]


@pytest.mark.parametrize(
    "layout", ["single", "replicate2_shard2", "tensor2", "pipeline2_interleaved", "pipeline2_zbv", "tensor2_pipeline2"]
)
def test_mup_under_a_power_law_with_growing_batches(group, corpus, expected, tmp_path, layout):
    axes = (DATA | PIPELINE | COMPOSED)[layout]
    run = _run("fp64", *MUP, *GROWING, layers=_layers(axes))
    _compare(group, corpus, expected, tmp_path, axes, run, ["train.microbatch=2"], TOLERANCE["fp64"])


@pytest.mark.parametrize("layout", ["single", "replicate2", "pipeline2_1f1b"])
def test_muon_where_matrices_are_whole(group, corpus, expected, tmp_path, layout):
    axes = (DATA | PIPELINE)[layout]
    how = [f"train.microbatch={_microbatch(axes)}"]
    _compare(group, corpus, expected, tmp_path, axes, _run("fp64", "optimizer=muon"), how, TOLERANCE["fp64"])


@pytest.mark.parametrize("layout", ["single", "shard2", "replicate2_shard2", "tensor2_shard2", "pipeline2_shard2"])
def test_bf16_stays_near_fp32(group, corpus, expected, tmp_path, layout):
    """bf16 keeps 8 bits of mantissa: activations carry errors of 2^-9, which average out in a loss over 512 tokens."""
    axes = (DATA | COMPOSED)[layout]
    how = [f"train.microbatch={_microbatch(axes)}", "train.precision=bf16"]
    _compare(group, corpus, expected, tmp_path, axes, _run("fp32"), how, tolerance=2e-2)


def test_initial_weights_are_bitwise_those_of_one_process(group, corpus):
    overrides = [
        *corpus,
        *MODEL,
        *LENGTH,
        "train.microbatch=1",
        "model.hidden_size=36",
        "model.head_dim=8",
        "model.ffn_size=54",
    ]  # little divides evenly
    single = group(1).run(whole_runs.initial_weights, overrides)[0]
    assert len(set(single.values())) > 10
    for axes in (["shard=2"], ["context=2"], ["tensor=2"], ["pipeline=2"], ["pipeline=2", "pipeline_schedule=zbv"]):
        words = [f"parallel.{axis}" for axis in axes]
        assert group(2).run(whole_runs.initial_weights, [*overrides, *words]) == [single] * 2
    for axes in (["shard=4"], ["replicate=2", "shard=2"], ["tensor=2", "shard=2"], ["tensor=2", "pipeline=2"]):
        words = [f"parallel.{axis}" for axis in axes]
        assert group(4).run(whole_runs.initial_weights, [*overrides, *words]) == [single] * 4
    words = ["parallel.tensor=2", "parallel.pipeline=2", "parallel.shard=2"]
    assert group(8).run(whole_runs.initial_weights, [*overrides, *words]) == [single] * 8


def test_more_tensor_ranks_than_kv_heads_are_refused(corpus):
    config = load_config([*corpus, *MODEL, *LENGTH, *SCHEDULE, "parallel.tensor=4"])
    with pytest.raises(UserError, match=r"model\.num_kv_heads=2 is not divisible by parallel.tensor=4"):
        require(config, world_size=4)


def test_packed_documents_are_in_the_batches(corpus):
    """The cases above mean something for packing only if sequences hold several documents."""
    from train.data.loader import TrainLoader

    config = load_config([*corpus, *LENGTH])
    shards = open_shards(prepare(config.data, config.tokenizer, progress=False))
    batch = TrainLoader(shards.train, config.train.sequence, config.run.seed).batch(range(16))
    assert (batch.document_BS.amax(dim=1) > 0).float().mean() > 0.5
