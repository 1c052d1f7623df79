"""What a rank does in a parity test: a whole run of the trainer, on the process group it is given."""

import hashlib
from pathlib import Path

import torch
import torch._inductor.config

from parallel.mesh import World, build_meshes
from scaling.record import StepLine, read_metrics
from train.build import build_engine
from train.config import load_config, require
from train.trainer import run


def train(world: World, runs: list[list[str]]) -> list[list[tuple[float, float]]] | None:
    """(loss, gradient norm) of every step of every run as its metrics have them; None on ranks that write none."""
    torch._inductor.config.compile_threads = 1  # else every rank starts a pool of processes that each import torch
    found = [_train(world, overrides) for overrides in runs]
    return [losses for losses in found if losses is not None] or None


def _train(world: World, overrides: list[str]) -> list[tuple[float, float]] | None:
    config = load_config(overrides)
    require(config, world_size=world.size)
    assert run(config, world) == 0
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert (graphs > 0) == config.train.compile, f"{graphs} compiled graphs"
    if world.rank != 0:
        return None
    lines = [line for line in read_metrics(Path(config.run.dir, config.run.name)) if isinstance(line, StepLine)]
    assert [line.step for line in lines] == list(range(1, config.steps + 1))
    return [(line.loss or 0.0, line.gradient_norm or 0.0) for line in lines]


def initial_weights(world: World, overrides: list[str]) -> dict[str, str]:
    """SHA-256 of every parameter's bytes, gathered whole, before the first step."""
    config = load_config(overrides)
    engine = build_engine(config, build_meshes(config.parallel.layout, world.device), world.device)
    return {
        name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for name, tensor in engine.full_parameters()
    }
