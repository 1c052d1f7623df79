"""One loss on every layout: losses and gradient norms of eight steps equal those of a bare single-process loop.

All runs of a layout are carried out by the same processes, one after the other, when the first of them is asked for.
"""

import math
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Case:
    """`run` is what the run computes, `how` what must make no difference."""

    run: list[str]
    how: list[str]
    tolerance: float
    slow: bool = False


@pytest.fixture
def carry_out(group, corpus, tmp_path_factory):
    """The losses and norms of the trainer for every case, on one layout."""

    def carry_out(axes: dict[str, object], cases: list[Case], asynchronous: bool | None = None):
        place = tmp_path_factory.mktemp("runs")
        layout = [f"parallel.{key}={value}" for key, value in axes.items()]
        size = math.prod(value for value in axes.values() if isinstance(value, int))
        configs = [
            load_config([f"run.dir={place}/{number}", *corpus, *case.run, *layout, *case.how])
            for number, case in enumerate(cases)
        ]
        answers = group(size).run(whole_runs.train, configs, asynchronous, timeout=300.0)
        (written,) = [answer for answer in answers if answer is not None]
        return written

    return carry_out


def _assert_equal(carry_out, expected, axes: dict[str, object], *cases: Case) -> None:
    for found, case in zip(carry_out(axes, list(cases)), cases, strict=True):
        np.testing.assert_allclose(found, expected(case.run), rtol=case.tolerance, atol=0, err_msg=str(case))


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


def _case(layout: str, precision: str, *variant: str, how: list[str] | None = None, slow: bool = False) -> Case:
    axes = LAYOUTS[layout]
    words = [f"train.microbatch={_microbatch(axes)}"] if how is None else how
    return Case(_run(precision, *variant, layers=_layers(axes)), words, TOLERANCE[precision], slow)


def _context_case(axes: dict[str, object], precision: str, how: list[str], *variant: str) -> Case:
    """`how` is a method, then more keys of the layout."""
    method, *more = how
    near = precision == "bf16"  # see `_bf16_case`
    words = [f"train.microbatch={_microbatch(axes)}", *(f"parallel.{word}" for word in (f"context_method={method}", *more))]
    run = _run("fp32" if near else precision, *variant, layers=_layers(axes))
    return Case(run, [*words, *(["train.precision=bf16"] if near else [])], BF16 if near else TOLERANCE[precision])


BF16 = 2e-2


def _bf16_case(layout: str) -> Case:
    """bf16 keeps 8 bits of mantissa: activations carry errors of 2^-9, which average out in a loss over 512 tokens."""
    case = _case(layout, "fp32")
    return Case(case.run, [*case.how, "train.precision=bf16"], BF16)


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


VARIANTS = {
    "tied": ["model.tie_embeddings=true"],
    "gelu": ["model.ffn=gelu", "model.qk_norm=false"],
    "z_loss": ["train.z_loss=1e-2"],
    "clipped": ["optimizer.clip_norm=0.1"],
    "biases": ["model.qkv_bias=true", "model.qk_norm=false", "model.rope_factor=4", "model.rope_original_sequence=16"],
}
GROWING = ["train.batch_warmup_start=256", "train.batch_warmup_tokens=1024"]
LAYOUTS = DATA | PIPELINE | COMPOSED | CONTEXT


# In fp32 everything is computed as in fp64, only to fewer digits: one layout of each kind shows it, the others do under `slow`.
IN_FP32 = {"pipeline2_1f1b", "pipeline4_zbv", "tensor2"}


def _cases() -> dict[tuple[str, str], Case]:
    """(layout, name of a run on it) -> the run."""
    found: dict[tuple[str, str], Case] = {}
    for layout in DATA:  # on one rank: 8 and 4 micro-batches; on four: 2 and 1, no accumulation
        for precision in TOLERANCE:
            for microbatch in (2, 4):
                how = [f"train.microbatch={microbatch}"]
                slow = precision == "fp32" and microbatch == 4
                found[layout, f"{precision}, micro-batches of {microbatch}"] = _case(layout, precision, how=how, slow=slow)
    for layout, axes in PIPELINE.items():  # four or eight micro-batches
        for precision in TOLERANCE:
            how = ["train.microbatch=4" if axes["pipeline"] == 2 else "train.microbatch=2"]
            found[layout, precision] = _case(layout, precision, how=how, slow=precision == "fp32" and layout not in IN_FP32)
    for layout in COMPOSED:
        for precision in TOLERANCE:
            # Of the layouts of three axes, on eight processes, one is always run.
            slow = (precision == "fp32" and layout not in IN_FP32) or layout == "replicate2_shard2_tensor2"
            found[layout, precision] = _case(layout, precision, slow=slow)
    for layout, chosen in CHOSEN.items():  # every method by itself and beside another axis; the whole product is slow
        for precision, how in chosen:
            found[layout, " ".join([precision, *how])] = _context_case(CONTEXT[layout], precision, how)
    for layout in ("pipeline2_1f1b", "pipeline2_dualpipev", "tensor2_pipeline2"):
        found[layout, "tied"] = _case(layout, "fp64", *VARIANTS["tied"], how=["train.microbatch=4"])
    for layout, choice in (
        ("single", "selective"),
        ("single", "full"),
        ("tensor2_shard2", "selective"),
        ("pipeline2_shard2", "full"),
    ):
        how = [f"train.microbatch={_microbatch(LAYOUTS[layout])}", f"parallel.recompute={choice}"]
        found[layout, f"recompute {choice}"] = _case(layout, "fp64", how=how)
    for layout in ("replicate2_shard2", "tensor2"):
        for name, variant in VARIANTS.items():
            # What a block computes by itself knows nothing of data-parallel ranks.
            slow = name in ("gelu", "biases") and layout == "replicate2_shard2"
            found[layout, name] = _case(layout, "fp64", *variant, slow=slow)
    for layout in (
        *("single", "replicate2_shard2", "tensor2"),
        *("pipeline2_interleaved", "pipeline2_zbv", "tensor2_pipeline2"),
    ):  # under a power law with growing batches
        found[layout, "mup"] = _case(layout, "fp64", *MUP, *GROWING, how=["train.microbatch=2"])
    for layout in ("single", "replicate2", "pipeline2_1f1b"):  # where matrices are whole
        found[layout, "muon"] = _case(layout, "fp64", "optimizer=muon")
    for layout in ("single", "shard2", "replicate2_shard2", "tensor2_shard2", "pipeline2_shard2"):
        found[layout, "bf16 near fp32"] = _bf16_case(layout)
    return found


CASES = dict(sorted(_cases().items(), key=lambda case: list(LAYOUTS).index(case[0][0])))


@pytest.fixture(scope="module")
def carried_out():
    """Losses and norms of the runs that were carried out; None where their processes failed."""
    return {}


@pytest.mark.parametrize(
    "layout, name",
    [pytest.param(*key, id=": ".join(key), marks=[pytest.mark.slow] if case.slow else []) for key, case in CASES.items()],
)
def test_a_run_on_a_layout_is_the_bare_loop(carry_out, carried_out, expected, layout, name):
    case = CASES[layout, name]
    if (layout, name) not in carried_out:
        together = {key: other for key, other in CASES.items() if key[0] == layout and other.slow == case.slow}
        carried_out.update(dict.fromkeys(together))
        carried_out.update(zip(together, carry_out(LAYOUTS[layout], list(together.values())), strict=True))
    found = carried_out[layout, name]
    assert found is not None, "the processes that carry out this layout's runs failed: see its first case"
    np.testing.assert_allclose(found, expected(case.run), rtol=case.tolerance, atol=0)


def test_the_loop_of_gpus_reads_every_step_one_later_and_loses_none(carry_out, expected):
    """On the CPU, which would wait for every step. Checkpoints and evaluations fall between steps that are not yet read."""
    run = _run("fp64")
    between = ["checkpoint.every_tokens=1024", "eval.every_tokens=1536", "train.microbatch=8"]
    (found,) = carry_out(DATA["shard2"], [Case(run, between, TOLERANCE["fp64"])], asynchronous=True)
    np.testing.assert_allclose(found, expected(run), rtol=TOLERANCE["fp64"], atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("layout", CONTEXT | MORE_CONTEXT)
@pytest.mark.parametrize("variant", [[], ["model.tie_embeddings=true", "model.qk_norm=true"], MUP], ids=len)
def test_context_parallel_in_every_way(carry_out, expected, layout, variant):
    axes = (CONTEXT | MORE_CONTEXT)[layout]
    split_backward = axes.get("pipeline_schedule") in ("zbv", "dualpipev")
    choices = ["none", "full"] if split_backward else ["none", "full", "selective"]
    # With four context and two tensor ranks there are fewer heads than ranks.
    methods = METHODS[:3] if layout == "context4_tensor2" else METHODS
    cases = [
        _context_case(axes, precision, [method, f"recompute={choice}"], *variant)
        for precision in (["fp64"] if variant else TOLERANCE)
        for method in methods
        for choice in choices
    ]
    _assert_equal(carry_out, expected, axes, *cases)


@pytest.mark.parametrize(
    "layout, choice, precision",
    [
        ("single", "none", "fp32"),
        pytest.param("pipeline2_1f1b", "none", "fp64", marks=pytest.mark.slow),
        pytest.param("shard2", "full", "fp64", marks=pytest.mark.slow),
        pytest.param("tensor2_shard2", "selective", "fp64", marks=pytest.mark.slow),
        pytest.param("context2", "none", "fp64", marks=pytest.mark.slow),
        pytest.param("context2", "selective", "fp64", marks=pytest.mark.slow),
        pytest.param("context2_tensor2", "full", "fp64", marks=pytest.mark.slow),
    ],
)
def test_compiled(carry_out, expected, layout, choice, precision):
    # One size of micro-batch, so that the layouts share their kernels.
    how = ["train.microbatch=4", "train.compile=true", f"parallel.recompute={choice}"]
    _assert_equal(carry_out, expected, LAYOUTS[layout], Case(_run(precision), how, TOLERANCE[precision]))


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
    ((single,),) = group(1).run(whole_runs.initial_weights, [load_config(overrides)])
    assert len(set(single.values())) > 10
    layouts = {
        2: [["shard=2"], ["context=2"], ["tensor=2"], ["pipeline=2"], ["pipeline=2", "pipeline_schedule=zbv"]],
        4: [["shard=4"], ["replicate=2", "shard=2"], ["tensor=2", "shard=2"], ["tensor=2", "pipeline=2"]],
        8: [["tensor=2", "pipeline=2", "shard=2"]],
    }
    for size, every in layouts.items():
        configs = [load_config([*overrides, *(f"parallel.{axis}" for axis in axes)]) for axes in every]
        assert group(size).run(whole_runs.initial_weights, configs) == [[single] * len(every)] * size


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
