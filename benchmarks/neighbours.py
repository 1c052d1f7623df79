"""Training steps beside busy processes, for several counts of GNU OpenMP's spinning at barriers.

    python -m benchmarks.neighbours [--counts default 0 1000 10000] [--busy 0 1 2] [--rounds 5]

A thread that has reached a barrier spins for a while before it sleeps. While it spins it holds a core that the thread it waits
for may need: with as many threads as cores and one more busy process, that is the rule. One training process per count stays
alive; they do a step each in turns. The figure is the median step, and its ratio to the first count's without neighbours.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

from rich.console import Console
from rich.table import Table

MODEL = "model.num_layers=4 model.hidden_size=256 model.num_heads=4 model.ffn_size=704 model.vocab_size=2048 tokenizer=bytes"
ROWS, SEQUENCE = 8, 512


def spin() -> None:
    """A busy neighbour."""
    while True:
        pass


def train(count: str, pipe: Connection) -> None:
    """Does a step, and answers with its seconds, whenever it is asked. Imports torch after the count is set."""
    if count != "default":
        os.environ["GOMP_SPINCOUNT"] = count
    import torch

    from parallel.batch import Batch
    from parallel.environment import ProcessEnvironment
    from parallel.mesh import build_meshes, connect
    from train.build.engine import build_engine
    from train.config import load_config

    with connect(ProcessEnvironment.read()) as world:
        config = load_config([*MODEL.split(), f"train.sequence={SEQUENCE}", f"train.microbatch={ROWS}"])
        engine = build_engine(config, build_meshes(config.parallel.layout, world.device), world.device)
        tokens = torch.randint(257, (ROWS, SEQUENCE))
        batch = Batch(tokens, tokens, torch.zeros_like(tokens))
        while pipe.recv():
            start = time.perf_counter()
            engine.train_step([batch], learning_rate=1e-4, tokens=tokens.numel()).loss.item()
            pipe.send(time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="*", default=["default", "0", "1000", "10000"])
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 1, 2], help="numbers of busy processes")
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes: list[Any] = []
    for count in arguments.counts:
        pipes[count], theirs = context.Pipe()
        processes.append(context.Process(target=train, args=(count, theirs), daemon=True))
        processes[-1].start()

    def step(count: str) -> float:
        pipes[count].send(True)
        return float(pipes[count].recv())

    table = Table("busy processes", *arguments.counts, title="median training step by GOMP_SPINCOUNT")
    alone = None
    for busy in arguments.busy:
        neighbours = [context.Process(target=spin, daemon=True) for _ in range(busy)]
        for process in neighbours:
            process.start()
        rounds = [{count: step(count) for count in arguments.counts} for _ in range(arguments.rounds + 1)][1:]
        for process in neighbours:
            process.kill()
        medians = {count: statistics.median(times[count] for times in rounds) for count in arguments.counts}
        alone = alone or medians[arguments.counts[0]]
        cells = (f"{median:.3f} s, {median / alone:.2f}" for median in medians.values())
        table.add_row(str(busy), *cells)
        print(busy, {count: round(median, 3) for count, median in medians.items()}, flush=True)
    for pipe in pipes.values():
        pipe.send(False)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
