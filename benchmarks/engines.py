"""Step times of the engines on this machine over the native engine's, and the planner's forecast of that ratio.

    .venv/bin/python -m benchmarks.engines [--steps 7] [--set 'tensor ranks']

Two processes hold an engine of every kind and step them in turn; the ratio is of each round's step times, the median of rounds.
On a CPU Megatron-Core runs through the tests' shim (`tests/support/megatron_on_cpu.py`), whose cost is in its figures; with one
layout of it in a process, because its process groups are global.
"""

import argparse
import statistics
import time
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist

from parallel.batch import Batch
from parallel.engine.protocol import Engine
from parallel.mesh import World, build_meshes
from parallel.plan.step_time import step_parts
from tests.support import megatron_on_cpu
from tests.support.group import Group
from train.build.engine import build_engine
from train.config import load_config
from train.config.resolve.microbatch import job_of, local_hardware

MODEL = [
    *("model.num_layers=4", "model.hidden_size=128", "model.ffn_size=384", "model.vocab_size=2048", "tokenizer=bytes"),
    *("train.sequence=256", "train.microbatch=2", "train.batch_tokens=2048"),
]
SHARD, TENSOR = ["parallel.shard=2"], ["parallel.tensor=2", "train.microbatch=4"]
SETS = {
    "data ranks": {
        "native, shard 2": SHARD,
        "native, replicate 2": ["parallel.replicate=2"],
        "deepspeed, stage 1": [*SHARD, "parallel.engine=deepspeed", "parallel.zero_stage=1"],
        "deepspeed, stage 2": [*SHARD, "parallel.engine=deepspeed", "parallel.zero_stage=2"],
        "deepspeed, stage 3": [*SHARD, "parallel.engine=deepspeed", "parallel.zero_stage=3"],
        "megatron, distributed optimizer": [*SHARD, "parallel.engine=megatron", "parallel.zero_stage=1"],
    },
    "tensor ranks": {"native, tensor 2": TENSOR, "megatron, tensor 2": [*TENSOR, "parallel.engine=megatron"]},
}


def _shim(words: list[str]) -> AbstractContextManager[None]:
    on_gpu = torch.cuda.is_available()
    return nullcontext() if on_gpu or "parallel.engine=megatron" not in words else megatron_on_cpu.on_cpu()


def seconds(world: World, runs: list[list[str]], steps: int) -> list[list[float]]:
    """Seconds of every step of every engine, stepped in turn; without the first two."""
    torch.set_num_threads(1)
    engines: list[tuple[list[str], Engine, list[Batch], int]] = []
    draw = torch.Generator().manual_seed(world.rank)
    for words in runs:
        config = load_config([*MODEL, *words])
        with _shim(words):
            engine = build_engine(config, build_meshes(config.parallel.layout, world.device), world.device)
        shape = (config.train.microbatch, config.train.sequence)
        tokens = [torch.randint(256, shape, generator=draw) for _ in range(config.accumulation)]
        batches = [Batch(each, each, torch.zeros_like(each)) for each in tokens]
        engines.append((words, engine, batches, config.train.batch_tokens))
    found: list[list[float]] = [[] for _ in engines]
    for _ in range(steps + 2):
        for times, (words, engine, batches, count) in zip(found, engines, strict=True):
            dist.barrier()
            start = time.perf_counter()
            with _shim(words):
                engine.train_step(batches, learning_rate=1e-3, tokens=count).loss.item()
            times.append(time.perf_counter() - start)
    return [times[2:] for times in found]


def forecast(words: list[str]) -> float:
    """The planner's seconds of a step."""
    config = load_config([*MODEL, *words])
    return step_parts(job_of(config, local_hardware(config.parallel.layout.world_size)))["total"]


def compare(title: str, runs: dict[str, list[str]], steps: int) -> None:
    """Print the table of one set, its first row the unit."""
    measured = Group(2).run(seconds, list(runs.values()), steps, timeout=600.0)[0]
    base = next(iter(runs))
    print(f"\n{title}: step time / {base}'s ({statistics.median(measured[0]):.3f} s)\n")
    print(f"{'engine':34} {'measured':>9} {'range':>14} {'forecast':>9}")
    unit = forecast(runs[base])
    for (name, words), times in zip(runs.items(), measured, strict=True):
        ratios = sorted(mine / its for mine, its in zip(times, measured[0], strict=True))
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(f"{name:34} {statistics.median(ratios):9.2f} {spread:>14} {forecast(words) / unit:9.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7, help="measured steps of every engine")
    parser.add_argument("--set", choices=[*SETS], action="append", help="which tables; default: all")
    arguments = parser.parse_args()
    for name in arguments.set or SETS:
        compare(name, SETS[name], arguments.steps)
