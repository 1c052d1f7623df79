"""Keys that are `auto`, and how the chosen model is usually trained."""

from dataclasses import replace

import pytest

from common.config_files import group_options
from parallel.plan.hardware import load_hardware
from train.config import load_config, load_config_and_reasons, require
from train.config.resolve import automatic, microbatch


@pytest.fixture
def machine(monkeypatch):
    """`machine("h100", "NVIDIA H100 80GB HBM3")`: this machine has such GPUs."""

    def have(hardware: str, *names: str) -> None:
        monkeypatch.setattr(automatic, "gpu_names", lambda device: [] if device == "cpu" else list(names))
        monkeypatch.setattr(microbatch, "local_hardware", lambda ranks, device: load_hardware(hardware))

    return have


@pytest.mark.parametrize("shard", [1, 8, 64])
@pytest.mark.parametrize("model", [name for name in group_options()["model"] if name != "demo"])
def test_every_model_starts_without_a_further_key(machine, model, shard):
    machine("h100", "NVIDIA H100 80GB HBM3")
    words = [f"model={model}", f"parallel.shard={shard}"]
    config, reasons = load_config_and_reasons(words)
    require(config, world_size=shard, overrides=words)
    assert config.train.precision == "bf16"
    assert config.train.compile
    assert config.train.batch_tokens > 500_000
    assert config.schedule.peak <= 6e-4
    assert [reason.split("=")[0] for reason in reasons] == [
        "train.precision", "train.compile", "train.microbatch", "schedule.warmup_tokens",
    ]  # fmt: skip


def test_a_large_model_recomputes_what_a_small_one_keeps(machine):
    machine("h200", "NVIDIA H200")
    assert load_config(["model=1b"]).parallel.recompute == "none"
    assert load_config(["model=8b", "parallel.shard=8"]).parallel.recompute != "none"


@pytest.mark.parametrize("engine", ["deepspeed", "megatron"])
def test_other_engines_are_not_asked_for_what_they_refuse(machine, engine):
    machine("h100", "NVIDIA H100 80GB HBM3")
    config = load_config(["model=8b", "parallel.shard=8", f"parallel.engine={engine}"])
    assert not config.train.compile
    assert config.parallel.recompute in ("none", "full")


def test_a_schedule_in_a_v_is_not_asked_for_what_it_refuses(machine):
    machine("h100", "NVIDIA H100 80GB HBM3")
    words = ["model=8b", "parallel.shard=8", "parallel.pipeline=2", "parallel.pipeline_schedule=zbv"]
    require(load_config(words), world_size=16, overrides=words)


def test_what_is_typed_counts(machine):
    machine("h100", "NVIDIA H100 80GB HBM3")
    words = ["model=8b", "train.precision=fp32", "train.batch_tokens=65536", "train.microbatch=2", "schedule.peak=1e-3"]
    config = load_config(words)
    assert (config.train.precision, config.train.batch_tokens, config.train.microbatch) == ("fp32", 65536, 2)
    assert config.parallel.recompute == "full"  # still chosen, for this micro-batch
    assert config.schedule.peak == 1e-3
    assert load_config(["model=8b", "train.steps=7"]).train.tokens is None
    assert load_config(["model=8b", "schedule=power"]).schedule.peak == load_config(["schedule=power"]).schedule.peak
    assert load_config(["model=8b", "experiment=demo"]).eval.every_tokens == 300_000


@pytest.mark.parametrize(
    "names, said, expected",
    [
        ([], [], ("fp32", False)),
        (["NVIDIA H100 80GB HBM3"], ["train.device=cpu"], ("fp32", False)),
        (["Tesla V100-SXM2-16GB"], [], ("fp32", True)),
        (["NVIDIA A100-SXM4-80GB"], [], ("bf16", True)),
        (["AMD GPU"], [], ("bf16", True)),
    ],
)
def test_precision_and_compilation_follow_the_device(machine, names, said, expected):
    machine("h100", *names)
    config = load_config(["train.precision=auto", "train.compile=auto", *said])
    assert (config.train.precision, config.train.compile) == expected


@pytest.mark.parametrize(
    "words, expected",
    [
        ([], 80_000),  # the demo
        (["train.steps=20"], 20 * 4096 // 16),
        (["train.tokens=1e9"], 10_000_384),  # a hundredth of whole steps
        (["train.steps=20", "schedule.warmup_tokens=7"], 7),
    ],
)
def test_a_warmup_is_a_share_of_the_run(words, expected):
    config = load_config(words)
    assert config.schedule.warmup_tokens == pytest.approx(expected, rel=1e-4)
    require(config, world_size=1)


def test_the_demo_says_nothing_of_its_usual_warmup():
    assert load_config_and_reasons(["experiment=demo"])[1] == []


def test_memory_decides_about_recomputation(monkeypatch):
    words = ["train.sequence=256", "train.batch_tokens=2048", "train.microbatch=auto", "parallel.recompute=auto"]
    assert load_config(words).parallel.recompute == "none"
    little = replace(load_hardware("cpu"), memory_gib=1e-6)
    monkeypatch.setattr(microbatch, "local_hardware", lambda ranks, device: little)
    config, (why,) = load_config_and_reasons(words)
    assert (config.parallel.recompute, config.train.microbatch) == ("full", 1)
    assert "nothing is predicted to fit" in why
