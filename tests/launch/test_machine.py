"""A layout that this machine cannot carry is refused with the numbers, before a process is started."""

import re

import pytest

from common.errors import UserError
from launch import local, machine
from launch.machine import WORKER_GIB, free_bytes, require_room
from parallel.plan.hardware import load_hardware
from train.build.dry_run import show
from train.config import load_config


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(machine, "devices", lambda: 0)
    monkeypatch.setattr(machine, "free_bytes", lambda: 16 * 2**30)
    monkeypatch.setattr(machine, "local_hardware", lambda ranks, device: load_hardware("cpu"))


def test_a_thousand_processes_on_a_few_cores_start_nothing(monkeypatch, capsys):
    monkeypatch.setattr(local, "start_workers", lambda *words: pytest.fail("started"))
    assert local.main(["parallel.shard=1000", "train.batch_tokens=2048000"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) <= 5
    for words in ("1,000 processes on", "GiB are needed", "1,000 x 0.25 GiB", "GiB are free", "parallel.oversubscribe=true"):
        assert words in said


@pytest.mark.parametrize("words, problem", [
    (["parallel.shard=8"], None),
    (["parallel.shard=16"], "16 processes on 8 cores"),
    (["parallel.shard=16", "parallel.oversubscribe=true"], None),
    (["parallel.shard=16", "train.dry_run=true"], None),
    (["model=8b"], "GiB of weights, gradients, optimizer state and activations"),
    (["model=8b", "parallel.oversubscribe=true"], None),
])  # fmt: skip
def test_cores_and_memory_are_the_limits(cores, words, problem):
    config = load_config(words)
    if problem is None:
        require_room(config)
        return
    with pytest.raises(UserError, match=problem):
        require_room(config)


def test_what_is_offloaded_lies_in_the_hosts_memory(cores, monkeypatch):
    monkeypatch.setattr(machine, "devices", lambda: 4)
    words = ["parallel.shard=4", "model=1t", "parallel.engine=deepspeed", "parallel.zero_stage=3"]
    require_room(load_config(words))
    for offload, thousands in (("optimizer", 15), ("parameters", 18)):
        with pytest.raises(UserError, match=rf"{thousands},\d{{3}}\.\d GiB are needed"):
            require_room(load_config([*words, f"parallel.offload={offload}"]))


def test_devices_are_the_limit_where_there_are_any(cores, monkeypatch):
    monkeypatch.setattr(machine, "devices", lambda: 4)
    require_room(load_config(["parallel.shard=4", "model=1t"]))  # the host holds none of it
    with pytest.raises(UserError, match="8 processes on 4 GPUs"):
        require_room(load_config(["parallel.shard=8"]))


@pytest.mark.parametrize("words", [
    ["parallel.shard=4"],
    ["parallel.replicate=2", "parallel.tensor=2", "train.precision=fp64"],
    ["parallel.pipeline=2", "parallel.shard=2"],
])  # fmt: skip
def test_what_is_needed_is_what_the_dry_run_says(cores, monkeypatch, capsys, words):
    config = load_config(["train.batch_tokens=65536", *words])
    layout = config.parallel.layout
    show(config)
    peaks = re.findall(r"([\d.,]+) (MiB|GiB) +│$", capsys.readouterr().out, flags=re.MULTILINE)  # the last column
    assert len(peaks) == layout.pipeline
    of_dry_run = sum(float(size) * {"MiB": 2**20, "GiB": 2**30}[unit] for size, unit in peaks)
    needed = layout.world_size * WORKER_GIB * 2**30 + of_dry_run * layout.world_size / layout.pipeline
    monkeypatch.setattr(machine, "free_bytes", lambda: needed * 1.01)
    require_room(config)
    monkeypatch.setattr(machine, "free_bytes", lambda: needed * 0.99)
    with pytest.raises(UserError, match="GiB are needed"):
        require_room(config)


def test_activations_count(cores):
    """Weights, gradients and moments of a small model are nothing; a long sequence is not."""
    with pytest.raises(UserError, match="activations"):
        require_room(load_config(["train.sequence=65536", "train.batch_tokens=4194304", "train.microbatch=64"]))


def test_a_single_gpu_holds_what_one_process_trains(cores, monkeypatch):
    monkeypatch.setattr(machine, "local_hardware", lambda ranks, device: load_hardware("h100"))
    require_room(load_config(["model=8b"]))
    with pytest.raises(UserError, match="GiB are needed"):
        require_room(load_config(["model=8b", "train.device=cpu"]))


def test_free_memory_is_the_machines_or_the_control_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    whole = free_bytes()
    assert whole is not None
    assert whole > 2**28
    for name, content in (("max", "1000000"), ("current", "700000"), ("stat", "anon 1\ninactive_file 200000\n")):
        (tmp_path / f"memory.{name}").write_text(content)
    assert free_bytes() == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes() == pytest.approx(whole, rel=0.5)
