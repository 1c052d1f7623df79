"""One loss on every layout, across the switch from full precision to quantized weights."""

import math

import numpy as np
import pytest

from tests.support import layout_runs, quantized_reference, whole_runs
from tests.support.layout_runs import Run
from train.config import load_config
from train.config.resolve.quantization import low_precision_phase
from train.data.prepare import prepare
from train.data.shards import open_shards

MODEL = [
    *("model.num_layers=4", "model.hidden_size=32", "model.num_heads=4", "model.num_kv_heads=2", "model.ffn_size=48"),
    *("model.vocab_size=272", "model.init_std=0.1", "schedule.peak=5e-3", "schedule.warmup_tokens=1024"),
    *("train.steps=8", "train.sequence=32", "train.batch_tokens=512", "eval.tokens=600", "schedule.decay_fraction=0.25"),
    *("checkpoint.every_tokens=1000000", "health.step_timeout_seconds=null", "quant=qat", "quant.start=0.5"),
]
RUNS = {
    "fp64 4 bits": (["train.precision=fp64", "quant.bits=4"], 1e-10),
    "fp64 ternary, groups, activations, tied": (
        ["train.precision=fp64", "quant.bits=1.58", "quant.group=8", "quant.activation_bits=8", "model.tie_embeddings=true"],
        1e-10,
    ),
    "fp64 1 bit, classic": (["train.precision=fp64", "quant.bits=1", "quant.fuse_decay=false"], 1e-10),
    # In fp32 a weight within 1e-7 of where it rounds the other way changes the loss by more than the rest together.
    "fp32 4 bits": (["train.precision=fp32", "quant.bits=4"], 1e-5),
}
LAYOUTS = {
    "single": {},
    "shard2": {"shard": 2},
    "tensor2": {"tensor": 2},
    "pipeline2_1f1b": {"pipeline": 2},
    "pipeline2_zbv": {"pipeline": 2, "pipeline_schedule": "zbv"},
    "context2": {"context": 2},
    "replicate2_shard2": {"replicate": 2, "shard": 2},
    "tensor2_shard2": {"tensor": 2, "shard": 2},
}


# Groups, activations and a tied table are what layouts could get wrong; all runs on all layouts under `slow`.
CHOSEN = {
    "single": list(RUNS),
    "shard2": ["fp64 ternary, groups, activations, tied", "fp64 4 bits"],
    "tensor2": ["fp64 ternary, groups, activations, tied", "fp32 4 bits"],
    "pipeline2_1f1b": ["fp64 ternary, groups, activations, tied", "fp64 1 bit, classic"],
}
DEFAULT = ["fp64 ternary, groups, activations, tied"]


@pytest.fixture(scope="module")
def expected(corpus):
    known = {}

    def of(run: str, start: int = 4) -> list[tuple[float, float]]:
        if (run, start) not in known:
            config = load_config([*corpus, *MODEL, *RUNS[run][0]])
            assert low_precision_phase(config).start == 4 * 512
            shards = open_shards(prepare(config.data, config.tokenizer, progress=False))
            known[run, start] = quantized_reference.losses_and_norms(config, shards, start)
        return known[run, start]

    return of


def _compare(group, corpus, expected, tmp_path, layout, runs: list[str], *how: str) -> None:
    chosen = [Run([*corpus, *MODEL, *RUNS[run][0]], expected(run), RUNS[run][1]) for run in runs]
    layout_runs.assert_equal(group, tmp_path, layout, chosen, *how)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_across_the_switch(group, corpus, expected, tmp_path, layout):
    _compare(group, corpus, expected, tmp_path, LAYOUTS[layout], CHOSEN.get(layout, DEFAULT))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_run_on_every_layout(group, corpus, expected, tmp_path, layout):
    _compare(group, corpus, expected, tmp_path, LAYOUTS[layout], list(RUNS))


@pytest.mark.parametrize("layout", ["single", pytest.param("tensor2_shard2", marks=pytest.mark.slow)])
def test_micro_batches_add_up(group, corpus, expected, tmp_path, layout):
    _compare(group, corpus, expected, tmp_path, LAYOUTS[layout], ["fp64 4 bits"], "train.microbatch=2")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["single", "shard2"])
def test_compiled(group, corpus, expected, tmp_path, layout):
    _compare(group, corpus, expected, tmp_path, LAYOUTS[layout], ["fp64 4 bits"], "train.compile=true")


@pytest.mark.parametrize("run", RUNS)
def test_the_switch_is_in_the_losses(expected, run):
    """What the cases above compare means something only if quantization shows."""
    quantized_losses, plain = ([loss for loss, _ in expected(run, start)] for start in (4, 8))
    assert quantized_losses[:4] == plain[:4]
    assert max(abs(ours / theirs - 1) for ours, theirs in zip(quantized_losses[4:], plain[4:], strict=True)) > 1e-3


@pytest.mark.parametrize("layout", ["shard2", pytest.param("tensor2_shard2", marks=pytest.mark.slow)])
def test_bf16_stays_near_fp32(group, corpus, expected, tmp_path, layout):
    """As without quantization: activations carry errors of 2^-9. Scales that were cast with the weights would add their own."""
    axes = [f"parallel.{axis}={value}" for axis, value in LAYOUTS[layout].items()]
    words = [f"run.dir={tmp_path}", *corpus, *MODEL, "quant.bits=4", "train.precision=bf16", "train.microbatch=8", *axes]
    answers = group(math.prod(LAYOUTS[layout].values())).run(whole_runs.train, [load_config(words)], timeout=300.0)
    ((found,),) = [answer for answer in answers if answer is not None]
    np.testing.assert_allclose(found, expected("fp32 4 bits"), rtol=2e-2, atol=0)


def test_stopped_before_at_and_after_the_switch_and_gone_on_elsewhere(group, corpus, tmp_path):
    """Steps 5 to 8 are quantized; signals before, at and after the switch; the layout changes each time."""
    base = [*corpus, *MODEL, "train.precision=fp64", "quant.bits=2", "quant.group=8", f"run.dir={tmp_path}"]
    single, shard2 = ["train.microbatch=16"], ["train.microbatch=8", "parallel.shard=2"]
    tensor2 = ["train.microbatch=16", "parallel.tensor=2"]
    (whole,) = group(1).run(whole_runs.stop_and_go, [(load_config([*base, *single, "run.name=whole"]), None)])[0]
    parts = [*base, "run.name=parts"]
    for words, steps in ((single, 2), (shard2, 2), (tensor2, 2), (shard2, None)):
        found = group(1 if words is single else 2).run(whole_runs.stop_and_go, [(load_config([*parts, *words]), steps)])[0][0]
        if steps is not None:
            assert 0 < len(found) < 8
    for line, other in zip(found, whole, strict=True):
        for key in ("loss", "gradient_norm", "validation"):
            if key in line:
                np.testing.assert_allclose(
                    list(line[key].values()) if key == "validation" else line[key],
                    list(other[key].values()) if key == "validation" else other[key],
                    rtol=1e-10,
                )


def test_on_the_same_layout_a_run_that_was_stopped_is_the_same_to_the_bit(group, corpus, tmp_path):
    base = [*corpus, *MODEL, "quant.bits=4", f"run.dir={tmp_path}", "train.microbatch=16"]
    named = [load_config([*base, f"run.name={name}"]) for name in ("whole", "parts")]
    runs = [(named[0], None), (named[1], 6), (named[1], None)]
    whole, first, second = group(1).run(whole_runs.stop_and_go, runs)[0]
    assert 4 < len(first) < 8
    measured = ("step", "loss", "gradient_norm", "learning_rate", "validation")
    assert [{key: line.get(key) for key in measured} for line in second] == [
        {key: line.get(key) for key in measured} for line in whole
    ]
