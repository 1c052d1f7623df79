"""The cost of each layout on this machine: step times over a single process's, and the bubbles of pipelines.

    .venv/bin/python -m benchmarks.layouts steps [--rounds 5]
    .venv/bin/python -m benchmarks.layouts bubble [--rounds 5]
    .venv/bin/python -m benchmarks.layouts meta

On a CPU this shows only the cost of communication and of DTensor's bookkeeping: the same two cores do the same work in every
row. `steps` runs all layouts in turn and prints the median over rounds of step time / the single process's in the same round.
`bubble` fits forward-backward time = fixed + slope x micro-batches, so fixed / slope is the pipeline's bubble in micro-batches,
and prints it beside the formula's. `meta` builds the large models on the meta device.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch

from parallel.batch import Batch
from parallel.engine.native import NativeEngine
from parallel.mesh import World, build_meshes
from tests.support.group import Group
from train.build.engine import build_engine
from train.build.model import build_model
from train.config import load_config, require

MODEL = [
    "model.num_layers=8",
    "model.hidden_size=256",
    "model.ffn_size=768",
    "model.vocab_size=512",
    "tokenizer=bytes",
    "train.sequence=256",
    "train.microbatch=1",
]
LAYOUTS = {
    "single process, two threads": "",
    "replicate 2": "replicate=2",
    "shard 2": "shard=2",
    "tensor 2": "tensor=2",
    "pipeline 2, gpipe": "pipeline=2 pipeline_schedule=gpipe",
    "pipeline 2, 1f1b": "pipeline=2",
    "pipeline 2, interleaved": "pipeline=2 pipeline_schedule=interleaved",
    "pipeline 2, zbv": "pipeline=2 pipeline_schedule=zbv",
    "pipeline 2, dualpipev": "pipeline=2 pipeline_schedule=dualpipev",
    "replicate 2 x shard 2": "replicate=2 shard=2",
    "tensor 2 x shard 2": "tensor=2 shard=2",
    "tensor 2 x pipeline 2": "tensor=2 pipeline=2",
    "pipeline 2 x shard 2": "pipeline=2 shard=2",
}
# Bubble over ideal time, times micro-batches, for p ranks and v stages a rank: GPipe (Huang et al., arXiv 1811.06965), 1F1B and
# interleaved (Narayanan et al., arXiv 2104.04473, section 2.2): (p - 1) and (p - 1) / v. ZBV's is zero where forward, input
# gradient and weight gradient take the same time (Qi et al., arXiv 2401.10241, section 4).
BUBBLES = {"gpipe": 1.0, "1f1b": 1.0, "interleaved": 0.5, "zbv": 0.0}


class Timed:
    """An engine, its batches, and the seconds that each of its steps took."""

    def __init__(self, world: World, overrides: list[str]) -> None:
        config = load_config(overrides)
        require(config, world_size=world.size)
        engine = build_engine(config, build_meshes(config.parallel.layout, world.device), world.device)
        assert isinstance(engine, NativeEngine)  # whose forward and backward passes can be timed
        self.engine = engine
        self.tokens = config.train.batch_tokens
        draw = torch.Generator().manual_seed(world.rank)
        shape = (config.train.microbatch, config.train.sequence)
        self.batches = [
            Batch(
                torch.randint(256, shape, generator=draw),
                torch.randint(256, shape, generator=draw),
                torch.zeros(shape, dtype=torch.int64),
            )
            for _ in range(config.accumulation)
        ]
        self.whole: list[float] = []
        self.passes: list[float] = []
        self._train = self.engine.runner.train
        self.engine.runner.train = self._timed  # type: ignore[method-assign]

    def _timed(self, batches: Sequence[Batch], tokens: int) -> torch.Tensor:
        start = time.perf_counter()
        result = self._train(batches, tokens)
        self.passes.append(time.perf_counter() - start)
        return result

    def step(self) -> None:
        """One training step."""
        start = time.perf_counter()
        self.engine.train_step(self.batches, learning_rate=1e-3, tokens=self.tokens).loss.item()
        self.whole.append(time.perf_counter() - start)


def seconds(world: World, configs: list[list[str]], steps: int) -> list[tuple[list[float], list[float]]]:
    """(seconds of whole steps, of their passes) on one rank for every configuration, run in turn; without the first two."""
    torch.set_num_threads(2 if world.size == 1 else 1)
    engines = [Timed(world, overrides) for overrides in configs]
    for _ in range(steps + 2):
        for engine in engines:
            if world.size > 1:
                torch.distributed.barrier()
            engine.step()
    return [(engine.whole[2:], engine.passes[2:]) for engine in engines]


def overrides_of(axes: str, microbatches: int) -> list[str]:
    """The benchmark's model in this layout, with as many sequences in a step as `microbatches`."""
    return [*MODEL, f"train.batch_tokens={256 * microbatches}", *(f"parallel.{axis}" for axis in axes.split())]


def measure(axes: str, counts: Sequence[int], steps: int) -> list[list[tuple[list[float], list[float]]]]:
    """The result of `seconds` for every rank and number of micro-batches."""
    configs = [overrides_of(axes, count) for count in counts]
    return Group(load_config(configs[0]).parallel.layout.world_size).run(seconds, configs, steps, timeout=900.0)


def compare_steps(rounds: int) -> None:
    """Print the table of step times."""
    ratios: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    milliseconds: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    for number in range(rounds):
        for name, axes in LAYOUTS.items():
            slowest = max(statistics.median(whole) for [(whole, _)] in measure(axes, [8], steps=8))
            milliseconds[name].append(1000 * slowest)
            ratios[name].append(milliseconds[name][-1] / milliseconds[next(iter(LAYOUTS))][-1])
        print(f"round {number + 1} of {rounds} done", flush=True)
    print("\n| layout | processes | step, ms | / single process | from | to |\n|---|---|---|---|---|---|")
    for name, axes in LAYOUTS.items():
        processes = load_config([f"parallel.{axis}" for axis in axes.split()]).parallel.layout.world_size
        low, middle, high = min(ratios[name]), statistics.median(ratios[name]), max(ratios[name])
        print(f"| {name} | {processes} | {statistics.median(milliseconds[name]):.0f} | {middle:.2f} | {low:.2f} | {high:.2f} |")


def compare_bubbles(rounds: int) -> None:
    """Print measured bubbles beside the formula's."""
    counts = (4, 8, 16)
    print("| schedule | bubble measured, micro-batches | from | to | formula |\n|---|---|---|---|---|")
    for schedule, formula in BUBBLES.items():
        bubbles = []
        for _ in range(rounds):
            ranks = measure(f"pipeline=2 pipeline_schedule={schedule}", counts, steps=12)
            # The fastest step, because other work on the machine only makes steps slower.
            times = [max(min(passes) for _, passes in of_count) for of_count in zip(*ranks, strict=True)]
            slope, fixed = statistics.linear_regression(counts, times)
            bubbles.append(fixed / slope)
        print(
            f"| {schedule} | {statistics.median(bubbles):.2f} | {min(bubbles):.2f} | {max(bubbles):.2f} | {formula:.2f} |",
            flush=True,
        )


def build_large() -> None:
    """Print how long the large models take on the meta device."""
    for name in ("8b", "22b", "175b", "1t"):
        config = load_config([f"model={name}"])
        start = time.perf_counter()
        model = build_model(config.model, torch.float32, torch.device("meta"))
        elapsed = time.perf_counter() - start
        print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters in {elapsed:.2f} s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["steps", "bubble", "meta"])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.what == "steps":
        compare_steps(arguments.rounds)
    elif arguments.what == "bubble":
        compare_bubbles(arguments.rounds)
    else:
        build_large()


if __name__ == "__main__":
    main()
