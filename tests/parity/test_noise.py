"""One loss on every layout with noise on the weights: it is drawn anew in every backward pass, and nowhere stored."""

import math

import numpy as np
import pytest

from scaling.record import read_record
from tests.support import layout_runs, noised_reference, whole_runs
from tests.support.layout_runs import Run
from train.branch import branch_words, quantized_words
from train.config import load_config
from train.config.resolve.quantization import low_precision_phase
from train.data.prepare import prepare
from train.data.shards import open_shards

MODEL = [
    *("model.num_layers=4", "model.hidden_size=32", "model.num_heads=4", "model.num_kv_heads=2", "model.ffn_size=48"),
    *("model.vocab_size=272", "model.init_std=0.1", "schedule.peak=5e-3", "schedule.warmup_tokens=1024"),
    *("train.steps=8", "train.sequence=32", "train.batch_tokens=512", "eval.tokens=600", "schedule.decay_fraction=0.25"),
    *("checkpoint.every_tokens=1000000", "health.step_timeout_seconds=null", "quant.block=8"),
    # Wide steps, so that bit widths reach both their ends.
    *("quant.bits_learning_rate=40", "quant.penalty=0.001"),
]
RUNS = {
    "fp64 gaussian": (["quant=gaussian", "train.precision=fp64", "quant.b_target=3"], 1e-10),
    "fp64 gaussian, from the middle, tied, outer": (
        ["quant=gaussian", "train.precision=fp64", "quant.start=0.5", "quant.outer=true", "model.tie_embeddings=true"],
        1e-10,
    ),
    "fp64 diffq": (["quant=diffq", "train.precision=fp64", "quant.b_target=2"], 1e-10),
    # In fp32 a width whose gradient is lost in rounding takes a step in either direction, so steps are smaller.
    "fp32 gaussian": (["quant=gaussian", "train.precision=fp32", "quant.bits_learning_rate=4"], 1e-5),
    "fp32 diffq": (["quant=diffq", "train.precision=fp32", "quant.bits_learning_rate=4"], 1e-5),
}
LAYOUTS = {
    "single": {},
    "shard2": {"shard": 2},
    "replicate2": {"replicate": 2},
    "tensor2": {"tensor": 2},
    "pipeline2_1f1b": {"pipeline": 2},
    "pipeline2_zbv": {"pipeline": 2, "pipeline_schedule": "zbv"},
    "context2": {"context": 2},
    "replicate2_shard2": {"replicate": 2, "shard": 2},
    "tensor2_shard2": {"tensor": 2, "shard": 2},
}
# Every run on one process, one layout of each kind with what it could get wrong; all of both under `slow`.
CHOSEN = {
    "single": list(RUNS),
    "shard2": ["fp64 gaussian", "fp64 diffq"],
    "tensor2": ["fp64 gaussian", "fp64 gaussian, from the middle, tied, outer", "fp32 gaussian"],
    "pipeline2_1f1b": ["fp64 gaussian, from the middle, tied, outer"],
    "context2": ["fp64 gaussian"],
    "tensor2_shard2": ["fp64 gaussian, from the middle, tied, outer", "fp32 diffq"],
}


@pytest.fixture(scope="module")
def reference(corpus):
    known = {}

    def of(run: str) -> tuple[list[tuple[float, float]], dict]:
        if run not in known:
            config = load_config([*corpus, *MODEL, *RUNS[run][0]])
            shards = open_shards(prepare(config.data, config.tokenizer, progress=False))
            known[run] = noised_reference.losses_and_norms(config, shards, low_precision_phase(config).start // 512)
        return known[run]

    return of


def _compare(group, corpus, reference, tmp_path, layout, runs: list[str], *how: str) -> None:
    chosen = [Run([*corpus, *MODEL, *RUNS[run][0]], reference(run)[0], RUNS[run][1]) for run in runs]
    layout_runs.assert_equal(group, tmp_path, layout, chosen, *how)


@pytest.mark.parametrize("layout", CHOSEN)
def test_every_layout(group, corpus, reference, tmp_path, layout):
    _compare(group, corpus, reference, tmp_path, LAYOUTS[layout], CHOSEN[layout])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_run_on_every_layout(group, corpus, reference, tmp_path, layout):
    _compare(group, corpus, reference, tmp_path, LAYOUTS[layout], list(RUNS))


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputed_blocks_and_micro_batches_draw_the_same(group, corpus, reference, tmp_path, recompute):
    how = ("train.microbatch=4", f"parallel.recompute={recompute}")
    _compare(group, corpus, reference, tmp_path, {}, ["fp64 gaussian", "fp64 diffq"], *how)


@pytest.mark.parametrize("layout", [pytest.param(layout, marks=pytest.mark.slow) for layout in ("single", "tensor2", "shard2")])
def test_compiled(group, corpus, reference, tmp_path, layout):
    _compare(group, corpus, reference, tmp_path, LAYOUTS[layout], ["fp64 gaussian"], "train.compile=true")


def test_the_noise_is_in_the_losses_and_bit_widths_move_between_their_ends(reference):
    """What the cases above compare means something only if there is noise, and widths that move."""
    for run, (words, _) in RUNS.items():
        losses, widths = reference(run)
        assert len({loss for loss, _ in losses}) == len(losses)
        target, init = (float(load_config([*MODEL, *words]).quant.__dict__[key]) for key in ("b_target", "b_init"))
        every = np.concatenate([value.flatten().numpy() for value in widths.values()])
        assert target <= every.min() < every.max() <= init, run
        assert np.ptp(every) > (0.9 if run.startswith("fp64") else 0.01), run
    with_noise, without = (np.array(reference(run)[0])[:4, 0] for run in list(RUNS)[:2])
    assert abs(with_noise / without - 1).max() > 1e-4  # the second run begins without


@pytest.mark.parametrize("layout", ["shard2", pytest.param("tensor2_shard2", marks=pytest.mark.slow)])
def test_bf16_stays_near_fp32(group, corpus, reference, tmp_path, layout):
    """The integers are the same; what is added to bf16 weights is rounded to bf16."""
    axes = [f"parallel.{axis}={value}" for axis, value in LAYOUTS[layout].items()]
    words = [
        f"run.dir={tmp_path}",
        *corpus,
        *MODEL,
        "quant=gaussian",
        "train.precision=bf16",
        "train.microbatch=8",
        *axes,
    ]
    answers = group(math.prod(LAYOUTS[layout].values())).run(whole_runs.train, [load_config(words)], timeout=300.0)
    ((found,),) = [answer for answer in answers if answer is not None]
    np.testing.assert_allclose(found, reference("fp32 gaussian")[0], rtol=2e-2, atol=0)


def test_stopped_and_gone_on_elsewhere(group, corpus, tmp_path):
    """Noise begins at step 5; signals before, at and after that; the layout changes each time."""
    base = [*corpus, *MODEL, "train.precision=fp64", "quant=gaussian", "quant.start=0.5", f"run.dir={tmp_path}"]
    single, shard2 = ["train.microbatch=16"], ["train.microbatch=8", "parallel.shard=2"]
    tensor2 = ["train.microbatch=16", "parallel.tensor=2"]
    (whole,) = group(1).run(whole_runs.stop_and_go, [(load_config([*base, *single, "run.name=whole"]), None)])[0]
    parts = [*base, "run.name=parts"]
    for words, steps in ((single, 2), (shard2, 2), (tensor2, 2), (shard2, None)):
        found = group(1 if words is single else 2).run(whole_runs.stop_and_go, [(load_config([*parts, *words]), steps)])[0][0]
        if steps is not None:
            assert 0 < len(found) < 8
    for line, other in zip(found, whole, strict=True):
        for key in ("loss", "gradient_norm"):
            if key in line:
                np.testing.assert_allclose(line[key], other[key], rtol=1e-10)
        if "validation" in line:
            np.testing.assert_allclose(line["validation"]["validation"], other["validation"]["validation"], rtol=1e-10)
    widths = [read_record(tmp_path / name).bit_widths for name in ("whole", "parts")]
    assert widths[0] == widths[1]
    assert sum(sum(histogram.values()) for histogram in widths[0].values()) == 4 * (2 * 16 + 2 * 8 + 3 * 24)


@pytest.mark.slow
def test_a_branch_with_noise_is_the_run_planned_so(group, corpus, tmp_path):
    """Off a trunk in full precision; and a decay off a trunk that has noise already, on another layout."""
    schedule = ["schedule=constant", "checkpoint.every_tokens=512", "checkpoint.keep_every=1"]
    length = [word for word in MODEL if not word.startswith(("schedule.decay_fraction", "checkpoint", "quant"))]
    base = [*corpus, *length, *schedule, "train.precision=fp64", "train.microbatch=16", f"run.dir={tmp_path}"]
    noise = ["quant=gaussian", *(word for word in MODEL if word.startswith("quant")), "quant.start=0.5"]
    group(1).run(whole_runs.stop_and_go, [(load_config([*base, "run.name=trunk"]), None)])
    words = quantized_words(tmp_path / "trunk", None, None, noise)
    branch = load_config(words)
    assert (branch.run.name, branch.run.trunk) == ("trunk-gaussian4", str(tmp_path / "trunk/checkpoints/step_00000004"))
    planned = [*base[: len(corpus) + len(length)], *base[-3:], *schedule[1:], "schedule=wsd", "run.name=planned", *noise]
    found, expected = group(1).run(whole_runs.stop_and_go, [(branch, None), (load_config(planned), None)])[0]
    measured = [(line["loss"], line["gradient_norm"]) for line in found if "loss" in line]
    assert measured == [(line["loss"], line["gradient_norm"]) for line in expected if "loss" in line][4:]

    group(1).run(whole_runs.stop_and_go, [(load_config([*base, "run.name=noisy", *noise]), None)])
    words = branch_words(tmp_path / "noisy", 3072, 1024, [])
    single, tensor2 = (load_config([*words, f"run.name=decay{ranks}", f"parallel.tensor={ranks}"]) for ranks in (1, 2))
    one = group(1).run(whole_runs.stop_and_go, [(single, None)])[0][0]
    two = group(2).run(whole_runs.stop_and_go, [(tensor2, None)])[0][0]
    for key in ("loss", "gradient_norm"):
        ours, theirs = ([line[key] for line in lines if key in line] for lines in (one, two))
        assert len(ours) == 2
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)
