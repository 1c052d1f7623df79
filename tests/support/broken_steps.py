"""What a rank does in the tests of steps that go wrong."""

from collections.abc import Sequence
from unittest import mock

import torch

from parallel.batch import Batch
from parallel.mesh import World, build_meshes
from tests.support.console import on_rank
from train.build.engine import build_engine
from train.checkpoint.storage import copy_to_cpu
from train.config import load_config
from train.data.loader import TrainLoader


def step_with_a_broken_gradient(world: World, overrides: list[str]) -> bool:
    """Whether a step whose gradient is not finite leaves the whole state as it was, and the next one changes it."""
    config = load_config(overrides)
    engine = build_engine(config, build_meshes(config.parallel.layout, world.device), world.device)
    draw = torch.Generator().manual_seed(0)
    shape = (config.train.microbatch, config.train.sequence)
    tokens = torch.randint(256, shape, generator=draw).to(world.device)
    batches = [Batch(tokens, tokens, torch.zeros_like(tokens)) for _ in range(config.accumulation)]
    engine.train_step(batches, learning_rate=1e-2, tokens=config.train.batch_tokens)

    def copies() -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        copy_to_cpu(engine.state(), found)
        return found

    before = copies()
    # An objective over zero tokens: every gradient is infinite or not a number.
    result = engine.train_step(batches, learning_rate=1e-2, tokens=0)
    assert not result.gradient_norm.isfinite()
    unchanged = all(torch.equal(value, before[name]) for name, value in copies().items())
    engine.train_step(batches, learning_rate=1e-2, tokens=config.train.batch_tokens)
    return unchanged and any(not torch.equal(value, before[name]) for name, value in copies().items())


def run_with_bad_samples(
    world: World, overrides: list[str], bad: list[int], asynchronous: bool | None = None
) -> tuple[int, str, str]:
    """A run in which any step with one of the samples `bad` has a gradient that is not finite."""
    from parallel.engine.native import NativeEngine

    broken: list[Batch] = []
    original_batch, original_step = TrainLoader.batch, NativeEngine.train_step

    def batch(loader: TrainLoader, numbers: Sequence[int]) -> Batch:
        made = original_batch(loader, numbers)
        if set(numbers) & set(bad):
            broken.append(made)
        return made

    def train_step(engine: NativeEngine, batches: Sequence[Batch], *, learning_rate: float, tokens: int):
        has_one = any(batch is other for batch in batches for other in broken)
        mine = torch.tensor(has_one, dtype=torch.int64, device=world.device)
        torch.distributed.all_reduce(mine)
        return original_step(engine, batches, learning_rate=learning_rate, tokens=0 if mine else tokens)

    with mock.patch.object(TrainLoader, "batch", batch), mock.patch.object(NativeEngine, "train_step", train_step):
        return on_rank(world, overrides, asynchronous)


def run_without_samples(world: World, overrides: list[str], first: int, count: int) -> tuple[int, str, str]:
    """A run whose data lacks `count` samples from number `first` on."""
    original = TrainLoader.batch

    def batch(loader: TrainLoader, numbers: Sequence[int]) -> Batch:
        return original(loader, [number + count if number >= first else number for number in numbers])

    with mock.patch.object(TrainLoader, "batch", batch):
        return on_rank(world, overrides)
