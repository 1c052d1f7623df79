"""`train.microbatch=auto`."""

from dataclasses import replace

from parallel.plan.hardware import load_hardware
from parallel.plan.memory import memory
from train.config import load_config, require
from train.config.resolve import microbatch


def test_auto_is_a_number_that_the_batch_divides():
    config = load_config(["train.microbatch=auto", "train.sequence=256", "train.batch_tokens=6144"])
    assert 24 % config.train.microbatch == 0
    require(config, world_size=1)


def test_auto_takes_what_fits(monkeypatch):
    words = ["train.sequence=256", "train.batch_tokens=16384"]
    job = microbatch.job_of(load_config(words), load_hardware("cpu"))
    small = memory(replace(job, choice=replace(job.choice, microbatch=2)))["total"]
    machine = replace(load_hardware("cpu"), memory_gib=1.01 * small / 2**30)
    monkeypatch.setattr(microbatch, "local_hardware", lambda ranks, device: machine)
    assert load_config(["train.microbatch=auto", *words]).train.microbatch <= 2
    nothing = replace(machine, memory_gib=1e-6)
    monkeypatch.setattr(microbatch, "local_hardware", lambda ranks, device: nothing)
    assert microbatch.fastest(load_config(words), choose_microbatch=True, choose_recompute=False)[0] == 1
