"""Other engines follow the single-process run: losses and gradient norms of eight steps, and runs that move between engines.

Megatron-Core runs on the CPU through a shim of the tests alone (`tests/support/megatron_on_cpu.py`).
"""

import math

import numpy as np
import pytest
import torch

from tests.support import broken_steps, megatron_on_cpu, quantized_reference, reference, resumed_runs, whole_runs
from tests.support.group import Group
from train.config import load_config
from train.data.prepare import prepare
from train.data.shards import open_shards

RUN = [
    *("model.hidden_size=32", "model.num_heads=4", "model.num_kv_heads=2", "model.ffn_size=48", "model.vocab_size=272"),
    *("model.init_std=0.1", "train.steps=8", "train.sequence=32", "train.batch_tokens=512", "eval.tokens=600"),
    *("checkpoint.every_tokens=1000000", "health.step_timeout_seconds=null", "schedule.peak=5e-3"),
    *("schedule.warmup_tokens=1024", "schedule.decay_fraction=0.25"),
]
TOLERANCE = 1e-4
# bf16 keeps 8 bits of mantissa (see `test_layouts`). DeepSpeed reduces gradients in fp32, as the native engine does.
BF16 = 5e-3

ZERO = ["parallel.engine=deepspeed", "train.precision=fp32", "model.num_layers=2"]
MEGATRON = ["parallel.engine=megatron", "train.precision=fp32", "train.microbatch=4"]
INTERLEAVED = ["model.num_layers=4", "parallel.pipeline_schedule=interleaved", "parallel.virtual_stages=2"]
QAT = ["quant=qat", "quant.start=0.5", "quant.bits=4"]


@pytest.fixture(scope="module")
def expected(corpus):
    """The bare loop's losses and norms, computed once for each distinct run."""
    known = {}

    def of(run):
        what = tuple(word for word in run if not word.startswith(("parallel.", "train.microbatch", "train.precision")))
        if what not in known:
            config = load_config([*corpus, *RUN, *what])
            shards = open_shards(prepare(config.data, config.tokenizer, progress=False))
            quantized = config.quant.name == "qat"
            known[what] = (
                quantized_reference.losses_and_norms(config, shards, 4)
                if quantized
                else reference.losses_and_norms(config, shards)
            )
        return known[what]

    return of


@pytest.fixture
def compare(group, corpus, tmp_path, expected):
    """Carry runs out on a layout, one after the other, and compare them with the bare loop."""

    def compare(axes, runs, *, case=whole_runs.train, tolerance=TOLERANCE, ranks=None):
        layout = [f"parallel.{key}={value}" for key, value in axes.items()]
        configs = [load_config([f"run.dir={tmp_path}/{n}", *corpus, *RUN, *layout, *run]) for n, run in enumerate(runs)]
        answers = (ranks or group(math.prod(axes.values()))).run(case, configs, timeout=400.0)
        (found,) = [answer for answer in answers if answer is not None]
        for run, losses in zip(runs, found, strict=True):
            np.testing.assert_allclose(losses, expected(run), rtol=tolerance, atol=0, err_msg=" ".join(run))

    return compare


def test_zero_on_two_ranks(compare):
    pytest.importorskip("deepspeed")
    compare({"shard": 2}, [[*ZERO, f"parallel.zero_stage={stage}", "train.microbatch=4"] for stage in (1, 2, 3)])


@pytest.mark.slow
def test_zero_on_four_ranks(compare):
    runs = [[*ZERO, f"parallel.zero_stage={stage}", f"train.microbatch={rows}"] for stage in (1, 2, 3) for rows in (2, 4)]
    compare({"shard": 4}, runs)


@pytest.mark.slow
def test_zero_in_every_way(compare):
    third = [*ZERO, "parallel.zero_stage=3", "train.microbatch=4"]
    ways = [
        [*ZERO, "parallel.zero_stage=2", "parallel.offload=optimizer", "train.microbatch=4"],
        [*third, "parallel.offload=parameters"],
        [*third, "parallel.recompute=full"],
        [*ZERO, "parallel.zero_stage=2", "parallel.recompute=selective", "train.microbatch=4"],
        [*third, "model.tie_embeddings=true"],
        [*third, "optimizer.mup=true", "optimizer.mup_base_width=8"],
        [*third, "train.z_loss=1e-2"],
    ]
    compare({"shard": 2}, ways)
    compare({"context": 2}, [third])


@pytest.mark.slow
def test_zero_with_its_own_optimizer(compare, moving):
    """Which is compiled, if it has not been."""
    own = (["parallel.engine=deepspeed", "parallel.shard=2", "parallel.zero_stage=2", "parallel.fused_optimizer=true"], 6)
    compare({"shard": 2}, [[*ZERO, *own[0], "train.microbatch=4"]])
    moving(NATIVE, own, own, NATIVE)


@pytest.mark.slow
def test_zero_across_the_switch_to_quantized_weights(compare):
    compare({"shard": 2}, [[*ZERO, *QAT, f"parallel.zero_stage={stage}", "train.microbatch=4"] for stage in (1, 2, 3)])


@pytest.mark.slow
def test_zero_in_bf16(compare):
    runs = [[*ZERO, "train.precision=bf16", f"parallel.zero_stage={stage}", "train.microbatch=4"] for stage in (1, 2, 3)]
    compare({"shard": 2}, runs, tolerance=BF16)


def test_megatron_tensor_parallel(compare):
    pytest.importorskip("megatron.core")
    compare({"tensor": 2}, [[*MEGATRON, "model.num_layers=2", "model.qk_norm=true"]], case=megatron_on_cpu.train)


@pytest.mark.slow
@pytest.mark.parametrize(
    "axes, how",
    [
        ({"pipeline": 2}, [[]]),
        ({"pipeline": 2}, [INTERLEAVED]),
        ({"pipeline": 2}, [["model.tie_embeddings=true"]]),
        ({"tensor": 2, "pipeline": 2}, [[]]),
        ({"shard": 2}, [[], ["parallel.zero_stage=1"], ["parallel.recompute=full"], ["model.ffn=gelu"]]),
        ({"tensor": 2, "shard": 2}, [["parallel.zero_stage=1"]]),
    ],
    ids=str,
)
def test_megatron_in_every_way(compare, axes, how):
    runs = [[*MEGATRON, *(["model.num_layers=2"] if words != INTERLEAVED else []), *words] for words in how]
    compare(axes, runs, case=megatron_on_cpu.train)


@pytest.mark.slow
def test_megatron_in_bf16(compare):
    runs = [[*MEGATRON, "model.num_layers=2", "train.precision=bf16", f"parallel.zero_stage={zero}"] for zero in ("null", 1)]
    compare({"shard": 2}, runs, case=megatron_on_cpu.train, tolerance=BF16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Megatron-Core without the shim needs a GPU, and here is none")
def test_megatron_on_a_gpu(compare):
    pytest.importorskip("megatron.core")
    run = [*MEGATRON, "model.num_layers=2", "train.precision=bf16", "parallel.zero_stage=1"]
    compare({"shard": 1}, [run], tolerance=BF16, ranks=Group(1, "nccl"))


# What a run that moves does: (engine's words, steps until it is stopped).
NATIVE = (["parallel.engine=native", "parallel.shard=2"], 6)
STAGES = {stage: (["parallel.engine=deepspeed", "parallel.shard=2", f"parallel.zero_stage={stage}"], 6) for stage in (1, 2, 3)}
OF_MEGATRON = {
    name: (["parallel.engine=megatron", *(f"parallel.{word}" for word in words)], 6)
    for name, words in {
        "tensor": ["tensor=2"],
        "pipeline": ["pipeline=2"],
        "distributed": ["shard=2", "zero_stage=1"],
        "shard": ["shard=2"],
    }.items()
}


@pytest.fixture
def moving(group, corpus, tmp_path):
    """A run that stops and goes on under one engine after another is the native run that never stopped."""

    def moving(*legs, tolerance=1e-5):
        run = [*corpus, *resumed_runs.MODEL, "model.num_layers=4", "train.precision=fp32", "schedule.warmup_tokens=512"]
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        run += [f"train.steps={6 * len(legs)}", f"run.dir={place}", "train.microbatch=1"]
        words = [(NATIVE[0], "whole", None)]
        words += [(how, "moving", None if leg == len(legs) - 1 else steps) for leg, (how, steps) in enumerate(legs)]
        configured = [(load_config([*run, f"run.name={name}", *how]), steps) for how, name, steps in words]
        case = (megatron_on_cpu if any(leg in OF_MEGATRON.values() for leg in legs) else whole_runs).stop_and_go
        whole, *_, moved = group(2).run(case, configured, timeout=400.0)[0]
        assert [line["step"] for line in moved] == [line["step"] for line in whole]
        for key in ("loss", "gradient_norm"):
            values = [[line[key] for line in lines if key in line] for lines in (moved, whole)]
            np.testing.assert_allclose(*values, rtol=tolerance, atol=0)

    return moving


@pytest.mark.slow
def test_a_run_moves_between_the_native_engine_and_zero(moving):
    """With AdamW's moments, both ways, and on under the same engine."""
    pytest.importorskip("deepspeed")
    moving(NATIVE, STAGES[1], STAGES[3], NATIVE)


@pytest.mark.slow
def test_a_step_that_is_not_finite_changes_nothing(group):
    """And the next one does."""
    for stage in (1, 2, 3):
        for precision in ("fp32", "bf16"):
            words = [*RUN, *ZERO, f"train.precision={precision}", f"parallel.zero_stage={stage}", "parallel.shard=2"]
            words += ["train.microbatch=4", "tokenizer=bytes"]
            assert group(2).run(broken_steps.step_with_a_broken_gradient, words) == [True, True], words


@pytest.mark.slow
def test_a_run_moves_between_all_engines(moving):
    moving(NATIVE, *OF_MEGATRON.values(), STAGES[2], OF_MEGATRON["tensor"], NATIVE)


@pytest.mark.slow
def test_a_run_goes_on_under_each_engine(moving):
    for leg in (*STAGES.values(), *OF_MEGATRON.values()):
        moving(leg, leg)
