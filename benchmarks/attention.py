"""A whole training step with attention over pieces, against a dense mask and against a loop over documents.

    python -m benchmarks.attention [--rounds 5] [--threads 2]

A model of 4 layers of width 256, one process, fp32. "mask": every layer takes an additive mask of the whole sequence. "loop":
every document is attended by itself, as a bare loop would do it. All take turns in one run; a figure is the median of the
rounds' ratios. Memory is the peak of live bytes above what the engine holds between steps, per token.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from unittest import mock

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

import train.model.attention
from parallel.attention.attend import attend
from parallel.batch import Batch
from parallel.engine.protocol import Engine
from parallel.environment import ProcessEnvironment
from parallel.mesh import build_meshes, connect
from train.build.engine import build_engine
from train.config import load_config
from train.loop.memory import LiveBytes

MODEL = "model.num_layers=4 model.hidden_size=256 model.num_heads=4 model.ffn_size=704 model.vocab_size=2048 tokenizer=bytes"
CASES = {  # name -> (rows, tokens in a row, median length of a document, spread of its logarithm)
    "512, one document a row": (4, 512, 10_000, 0.0),
    "512, documents of 3,000": (4, 512, 3_000, 1.0),
    "2,048, documents of 1,000": (1, 2_048, 1_000, 0.0),
    "8,192, documents of 1,000": (1, 8_192, 1_000, 0.0),
    "8,192, documents of median 60": (1, 8_192, 60, 1.2),
}
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def packed(rows: int, sequence: int, median: float, spread: float) -> Tensor:
    """The documents of every token (rows, sequence), of log-normal lengths."""
    draw, numbers = random.Random(0), []
    for _ in range(rows):
        row: list[int] = []
        while len(row) < sequence:
            row += [row[-1] + 1 if row else 0] * max(1, round(median * draw.lognormvariate(0, spread)))
        numbers.append(row[:sequence])
    return torch.tensor(numbers)


@lru_cache(maxsize=4)
def _mask(pieces: bytes, rows: int, sequence: int) -> Tensor:
    """The additive mask (rows, 1, S, S) of encoded pieces, made once a micro-batch."""
    mask = torch.full((rows, 1, sequence, sequence), float("-inf"))
    for row, start, stop, *_ in torch.frombuffer(bytearray(pieces), dtype=torch.int64).view(-1, 6)[:-1].tolist():
        hidden = torch.ones(stop - start, stop - start, dtype=torch.bool).triu(1)
        mask[row, 0, start:stop, start:stop] = torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))
    return mask


def by_mask(query: Tensor, key: Tensor, value: Tensor, pieces: Tensor, scale: float) -> Tensor:
    """What the model did before it had pieces."""
    mask = _mask(pieces.numpy().tobytes(), query.shape[0], query.shape[2])
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def by_document(query: Tensor, key: Tensor, value: Tensor, pieces: Tensor, scale: float) -> Tensor:
    """A loop over documents, one causal call for each."""
    rows: list[list[Tensor]] = [[] for _ in range(query.shape[0])]
    for row, start, stop, *_ in pieces[:-1].tolist():
        its_query, its_key, its_value = (tensor[row : row + 1, :, start:stop] for tensor in (query, key, value))
        rows[row].append(F.scaled_dot_product_attention(its_query, its_key, its_value, is_causal=True, scale=scale))
    return torch.cat([torch.cat(parts, dim=2) for parts in rows])


def step(engine: Engine, batch: Batch, how: Attend) -> float:
    """Seconds of a training step."""
    with mock.patch.object(train.model.attention, "attend", how):
        start = time.perf_counter()
        engine.train_step([batch], learning_rate=1e-4, tokens=batch.tokens_BS.numel()).loss.item()
        return time.perf_counter() - start


def bytes_per_token(engine: Engine, batch: Batch, how: Attend) -> float:
    """Peak of live bytes above what is held between steps, per token."""
    with mock.patch.object(train.model.attention, "attend", how), LiveBytes(p for _, p in engine.named_parameters()) as live:
        for _ in range(2):
            engine.train_step([batch], learning_rate=1e-4, tokens=batch.tokens_BS.numel())
    return (live.peak - live.current) / batch.tokens_BS.numel()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="*", default=[2_048, 8_192, 32_768], help="of the memory table")
    arguments = parser.parse_args()
    ways: dict[str, Attend] = {"pieces": attend, "mask": by_mask, "loop": by_document}
    table = Table("tokens in a row", "step", "over mask", "over loop", title="a training step")
    with connect(ProcessEnvironment.read()) as world:
        torch.set_num_threads(arguments.threads)
        for name, (rows, sequence, median, spread) in CASES.items():
            config = load_config([*MODEL.split(), f"train.sequence={sequence}", f"train.microbatch={rows}"])
            engine = build_engine(config, build_meshes(config.parallel.layout, world.device), world.device)
            tokens = torch.randint(257, (rows, sequence))
            batch = Batch(tokens, tokens, packed(rows, sequence, median, spread))
            times: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(arguments.rounds + 1):
                for way, how in ways.items():
                    seconds = step(engine, batch, how)
                    if number:
                        times[way].append(seconds)
            ratios = {
                other: statistics.median(ours / theirs for ours, theirs in zip(times["pieces"], times[other], strict=True))
                for other in ("mask", "loop")
            }
            print(f"{name}: {ratios}", file=sys.stderr, flush=True)
            table.add_row(name, f"{statistics.median(times['pieces']):.3f} s", *(f"{ratio:.3f}" for ratio in ratios.values()))
        memory = Table("tokens in a row", "bytes per token", title="memory of a step, documents of 1,000 tokens")
        for sequence in arguments.lengths:
            config = load_config([*MODEL.split(), f"train.sequence={sequence}", "train.microbatch=1"])
            engine = build_engine(config, build_meshes(config.parallel.layout, world.device), world.device)
            tokens = torch.randint(257, (1, sequence))
            memory.add_row(
                f"{sequence:,}",
                f"{bytes_per_token(engine, Batch(tokens, tokens, packed(1, sequence, 1_000, 0.0)), attend):,.0f}",
            )
    Console().print(table, memory)


if __name__ == "__main__":
    main()
