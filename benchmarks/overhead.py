"""The overhead of the trainer: its tokens per second over those of a loop in bare PyTorch.

    python -m benchmarks.overhead [--rounds 3] [--steps 8] [--precisions fp32 bf16] [--lengths 512 2048 8192] [--compile no yes]

The bare loop (`benchmarks.bare`) has plain modules, causal attention, fused AdamW and the same allocator settings and threads;
it is compiled as a whole where the trainer compiles block by block. Both train a model of 4 layers of width 256 on the same
data, 4,096 tokens a micro-batch (or one sequence), in turns of `--steps` steps in one process. A figure is the median of the
rounds' ratios of median steps; above 1 the trainer is faster.
"""

import argparse
import io
import itertools
import statistics
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from parallel.environment import ProcessEnvironment, spin_briefly

MODEL = ["model.num_layers=4", "model.hidden_size=256", "model.num_heads=4", "model.ffn_size=704"]


def words(arguments: argparse.Namespace, precision: str, length: int, compiled: bool) -> list[str]:
    """The overrides of a case."""
    rows = max(1, 4096 // length)
    return [
        *MODEL,
        *(f"train.sequence={length}", f"train.microbatch={rows}", f"train.batch_tokens={rows * length}"),
        *(f"train.steps={arguments.steps}", f"train.precision={precision}", f"train.compile={compiled}"),
        *("schedule=constant", "schedule.warmup_tokens=0", "eval.tokens=256"),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of a turn; the first two do not count")
    parser.add_argument("--precisions", nargs="*", default=["fp32", "bf16"])
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 2048, 8192])
    parser.add_argument("--compile", nargs="*", default=["no", "yes"], choices=["no", "yes"])
    arguments = parser.parse_args()
    spin_briefly()
    import torch
    from rich.console import Console
    from rich.table import Table

    from benchmarks import bare
    from parallel.mesh import World, connect
    from scaling.record import StepLine, read_metrics
    from train.config import load_config, require
    from train.data.loader import TrainLoader
    from train.data.prepare import prepare
    from train.data.shards import open_shards
    from train.loop.run import run

    def of_trainer(overrides: list[str], folder: Path, world: World) -> float:
        config = load_config([*overrides, f"run.dir={folder}"])
        require(config, world_size=1)
        with redirect_stdout(io.StringIO()):
            run(config, world)
        seconds = [line.step_seconds for line in read_metrics(folder / config.run.name) if isinstance(line, StepLine)]
        return config.train.batch_tokens / statistics.median(seconds[bare.SKIPPED_STEPS :])

    def of_bare_loop(overrides: list[str]) -> float:
        config = load_config(overrides)
        torch.manual_seed(0)
        model = bare.BareDecoder(config.model.shape)
        shards = open_shards(prepare(config.data, config.tokenizer, progress=False))
        loader = TrainLoader(shards.train, config.train.sequence, config.run.seed)
        return bare.train(torch.compile(model) if config.train.compile else model, model, config, loader)

    table = Table("tokens", "precision", "compiled", "bare loop, tokens/s", "trainer", "from", "to")
    cases = itertools.product(arguments.lengths, arguments.precisions, arguments.compile)
    for length, precision, compiled in cases:
        overrides = words(arguments, precision, length, compiled == "yes")
        bare_speeds, ratios = [], []
        for _ in range(arguments.rounds):
            # Connecting sets threads and allocator, for both sides.
            with tempfile.TemporaryDirectory() as name, connect(ProcessEnvironment.read()) as world:
                bare_speeds.append(of_bare_loop(overrides))
                ratios.append(of_trainer(overrides, Path(name), world) / bare_speeds[-1])
        case = (f"{length:,}", precision, compiled, f"{statistics.median(bare_speeds):,.0f}")
        row = (*case, *(f"{ratio:.3f}" for ratio in (statistics.median(ratios), min(ratios), max(ratios))))
        print(*row, file=sys.stderr, flush=True)
        table.add_row(*row)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
