"""One loss on every layout with noise on the weights: it is drawn anew in every backward pass, and nowhere stored."""

import math

import numpy as np
import pytest

from tests.support import noised_reference, whole_runs
from train.config import load_config
from train.config.resolve.quantization import low_precision_phase
from train.data.prepare import prepare
from train.data.shards import open_shards

MODEL = [
    *("model.num_layers=4", "model.hidden_size=32", "model.num_heads=4", "model.num_kv_heads=2", "model.ffn_size=48"),
    *("model.vocab_size=272", "model.init_std=0.1", "schedule.peak=5e-3", "schedule.warmup_tokens=1024"),
    *("train.steps=8", "train.sequence=32", "train.batch_tokens=512", "eval.tokens=600", "schedule.decay_fraction=0.25"),
    *("checkpoint.every_tokens=1000000", "health.step_timeout_seconds=null", "quant.block=8"),
    # Wide steps and a strong pull, so that bit widths reach both their ends.
    *("quant.bits_learning_rate=40", "quant.penalty=0.1"),
]
RUNS = {
    "fp64 gaussian": (["quant=gaussian", "train.precision=fp64", "quant.b_target=3"], 1e-10),
    "fp64 gaussian, from the middle, tied, outer": (
        ["quant=gaussian", "train.precision=fp64", "quant.start=0.5", "quant.outer=true", "model.tie_embeddings=true"],
        1e-10,
    ),
    "fp64 diffq": (["quant=diffq", "train.precision=fp64", "quant.b_target=2"], 1e-10),
    "fp32 gaussian": (["quant=gaussian", "train.precision=fp32"], 1e-5),
    "fp32 diffq": (["quant=diffq", "train.precision=fp32"], 1e-5),
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
# Every run on one process, every layout with what it could get wrong; all of both under `slow`.
CHOSEN = {
    "single": list(RUNS),
    "shard2": ["fp64 gaussian", "fp64 diffq"],
    "tensor2": ["fp64 gaussian", "fp64 gaussian, from the middle, tied, outer", "fp32 gaussian"],
    "pipeline2_1f1b": ["fp64 gaussian, from the middle, tied, outer"],
    "tensor2_shard2": ["fp64 gaussian, from the middle, tied, outer", "fp32 diffq"],
}
DEFAULT = ["fp64 gaussian"]


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
    size = math.prod(number for number in layout.values() if isinstance(number, int))
    passes = 4 if "pipeline" in layout else 1
    rows = 16 // (layout.get("replicate", 1) * layout.get("shard", 1)) // passes
    axes = [f"parallel.{axis}={value}" for axis, value in layout.items()]
    words = [
        load_config([f"run.dir={tmp_path}/{number}", *corpus, *MODEL, *RUNS[run][0], *axes, f"train.microbatch={rows}", *how])
        for number, run in enumerate(runs)
    ]
    (found,) = [answer for answer in group(size).run(whole_runs.train, words, timeout=300.0) if answer is not None]
    for losses, run in zip(found, runs, strict=True):
        np.testing.assert_allclose(losses, reference(run)[0], rtol=RUNS[run][1], atol=0, err_msg=run)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(group, corpus, reference, tmp_path, layout):
    _compare(group, corpus, reference, tmp_path, LAYOUTS[layout], CHOSEN.get(layout, DEFAULT))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_run_on_every_layout(group, corpus, reference, tmp_path, layout):
    _compare(group, corpus, reference, tmp_path, LAYOUTS[layout], list(RUNS))


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputed_blocks_and_micro_batches_draw_the_same(group, corpus, reference, tmp_path, recompute):
    how = ("train.microbatch=4", f"parallel.recompute={recompute}")
    _compare(group, corpus, reference, tmp_path, {}, ["fp64 gaussian", "fp64 diffq"], *how)


@pytest.mark.parametrize("layout", ["single", pytest.param("tensor2", marks=pytest.mark.slow), "shard2"])
def test_compiled(group, corpus, reference, tmp_path, layout):
    _compare(group, corpus, reference, tmp_path, LAYOUTS[layout], ["fp64 gaussian"], "train.compile=true")
