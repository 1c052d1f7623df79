"""What a rank does in a parity test: whole runs of the trainer, one after the other, on the process group it is given.

Configurations are composed by the test, once: composing one takes a rank as long as four steps of a small model.
"""

import hashlib
from dataclasses import asdict
from pathlib import Path
from signal import SIGTERM

import torch
import torch._inductor.config
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from parallel.mesh import World, build_meshes
from scaling.record import StepLine, read_metrics, read_record
from train.build.engine import build_engine
from train.config import Config, require
from train.loop.run import run
from train.loop.stop import StopRequest


def train(world: World, configs: list[Config], asynchronous: bool | None = None) -> list[list[tuple[float, float]]] | None:
    """(loss, gradient norm) of every step of every run as its metrics have them; None on ranks that write none."""
    torch._inductor.config.compile_threads = 1  # else every rank starts a pool of processes that each import torch
    found = [_train(world, config, asynchronous) for config in configs]
    return [losses for losses in found if losses is not None] or None


def _train(world: World, config: Config, asynchronous: bool | None) -> list[tuple[float, float]] | None:
    require(config, world_size=world.size)
    assert run(config, world, asynchronous=asynchronous) == 0
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert (graphs > 0) == config.train.compile, f"{graphs} compiled graphs"
    if world.rank != 0:
        return None
    lines = [line for line in read_metrics(Path(config.run.dir, config.run.name)) if isinstance(line, StepLine)]
    assert [line.step for line in lines] == list(range(1, config.steps + 1))
    return [(line.loss or 0.0, line.gradient_norm or 0.0) for line in lines]


class StopAfter(StopRequest):
    """A signal that comes by itself, when the run has asked for one so many times: once a step, once a validation batch."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._left = times

    @property
    def signal(self) -> int:
        self._left -= 1
        return SIGTERM if self._left < 0 else 0

    @signal.setter
    def signal(self, number: int) -> None: ...


def stop_and_go(world: World, runs: list[tuple[Config, int | None]]) -> list[list[dict[str, object]] | None]:
    """Carry out (configuration, steps until a signal or None) one after the other; the step lines of each, on rank 0.

    The signal is rank 1's alone, where there is one.
    """
    found: list[list[dict[str, object]] | None] = []
    for config, steps in runs:
        require(config, world_size=world.size)
        stops = steps is not None and world.rank == min(1, world.size - 1)
        assert run(config, world, StopAfter(steps) if stops and steps is not None else None) == 0
        lines = None
        if world.rank == 0:
            path = Path(config.run.dir, config.run.name)
            assert read_record(path).status == ("finished" if steps is None else "preempted")
            lines = [asdict(line) for line in read_metrics(path)]
        found.append(lines)
        dist.barrier()
    return found


def initial_weights(world: World, configs: list[Config]) -> list[dict[str, str]]:
    """SHA-256 of every parameter's bytes, gathered whole, before the first step of every run."""
    return [_initial_weights(world, config) for config in configs]


def _initial_weights(world: World, config: Config) -> dict[str, str]:
    engine = build_engine(config, build_meshes(config.parallel.layout, world.device), world.device)
    mine = {}
    for name, tensor in engine.state().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        mine[name] = hashlib.sha256(whole.contiguous().cpu().numpy().tobytes()).hexdigest()
    everyone: list[dict[str, str]] = [{}] * world.size
    dist.all_gather_object(everyone, mine)
    found: dict[str, str] = {}
    for hashes in everyone:
        assert all(found.setdefault(name, value) == value for name, value in hashes.items())
    return found
