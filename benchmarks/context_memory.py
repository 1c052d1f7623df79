"""Peak bytes of live tensors on a rank, by sequence length and number of ranks that share the sequence.

    .venv/bin/python -m benchmarks.context_memory [--longest 32768] [--documents one|packed] [--method token_ring|ring|...]

Two training steps of a small decoder on one row, measured by the tracker that fills `peak_memory_bytes` in a run's record.
Prints the maximum over ranks, without parameters and optimizer state, which do not grow with the sequence.
"""

import argparse
import random

import torch
import torch.distributed as dist

from parallel.batch import Batch
from parallel.mesh import World, build_meshes
from tests.support.group import Group
from train.build.engine import build_engine
from train.config import load_config, require
from train.loop.memory import LiveBytes

MODEL = [
    *("model.num_layers=2", "model.hidden_size=64", "model.num_heads=4", "model.num_kv_heads=2", "model.ffn_size=192"),
    *("model.vocab_size=272", "tokenizer=bytes", "train.microbatch=1"),
]
MEDIAN_DOCUMENT = 1000


def packed(sequence: int) -> torch.Tensor:
    """Document numbers of one row: lengths drawn from a log-normal distribution."""
    draw = random.Random(0)
    ids: list[int] = []
    while len(ids) < sequence:
        ids += [ids[-1] + 1 if ids else 0] * (1 + int(MEDIAN_DOCUMENT * draw.lognormvariate(0.0, 1.0)))
    return torch.tensor(ids[:sequence])[None]


def activations(world: World, overrides: list[str], documents: str) -> int:
    """Peak bytes beyond those that live between steps, the maximum over ranks."""
    config = load_config(overrides)
    require(config, world_size=world.size)
    engine = build_engine(config, build_meshes(config.parallel.layout, world.device), world.device)
    sequence = config.train.sequence
    tokens = torch.randint(256, (1, sequence), generator=torch.Generator().manual_seed(0))
    document_BS = packed(sequence) if documents == "packed" else torch.zeros_like(tokens)
    with LiveBytes(parameter for _, parameter in engine.named_parameters()) as live:
        for _ in range(2):
            engine.train_step([Batch(tokens, tokens, document_BS)], learning_rate=1e-3, tokens=sequence)
    most = torch.tensor(live.peak - live.current)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--longest", type=int, default=32768)
    parser.add_argument("--documents", choices=["one", "packed"], default="one")
    parser.add_argument("--method", default="token_ring")
    arguments = parser.parse_args()
    ranks = (1, 2, 4)
    print(f"{arguments.method}, {arguments.documents}; MiB beyond the model's, and bytes per token of a rank's part\n")
    print("| sequence | " + " | ".join(f"context {count}" for count in ranks) + " |\n|---" + "|---" * len(ranks) + "|")
    sequence = 2048
    while sequence <= arguments.longest:
        cells = []
        for count in ranks:
            words = [f"parallel.context={count}", f"parallel.context_method={arguments.method}"]
            words += [f"train.sequence={sequence}", f"train.batch_tokens={sequence}"]
            peak = Group(count).run(activations, [*MODEL, *words], arguments.documents, timeout=1800.0)[0]
            cells.append(f"{peak / 2**20:.1f} ({peak * count / sequence:,.0f})")
        print(f"| {sequence} | " + " | ".join(cells) + " |", flush=True)
        sequence *= 2


if __name__ == "__main__":
    main()
