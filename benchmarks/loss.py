"""The loss in chunks against the plain one from whole logits: time and peak memory.

    python -m benchmarks.loss [--rounds 7] [--threads 2] [--chunks 128 256 512]

Time: forward and backward pass of head and loss, in turns; the median of the rounds' ratios, for the chunk that is chosen and
for those given. Memory: the highest resident set of a process that does nothing else, above the one before the loss; the
gradient of the weight, which both must hold, is counted in both.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from parallel.environment import keep_freed_memory
from train.model.loss import chunk_tokens, loss_sums

SIZES = {  # name -> (tokens, hidden size, words)
    "4 x 512 tokens, width 256, 2,048 words": (2_048, 256, 2_048),
    "4 x 512 tokens, width 256, 8,192 words": (2_048, 256, 8_192),
    "8,192 tokens, width 256, 2,048 words": (8_192, 256, 2_048),
}
LARGE = (8_192, 1_024, 128_000)
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(hidden_BSE: Tensor, weight_VE: Tensor, targets_BS: Tensor) -> Tensor:
    """Mean cross entropy from whole logits, at least in fp32."""
    logits_TV = (hidden_BSE @ weight_VE.T).flatten(0, 1).float()
    return F.cross_entropy(logits_TV, targets_BS.flatten())


def in_chunks(hidden_BSE: Tensor, weight_VE: Tensor, targets_BS: Tensor, chunk: int | None = None) -> Tensor:
    """The same by `loss_sums`."""
    return loss_sums(hidden_BSE, weight_VE, targets_BS, chunk=chunk)[0] / targets_BS.numel()


def _inputs(tokens: int, hidden_size: int, words: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, tokens, hidden_size, generator=generator).to(dtype).requires_grad_()
    weight = (0.02 * torch.randn(words, hidden_size, generator=generator)).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(words, (1, tokens), generator=generator)


def seconds(loss: Loss, inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    """Of a forward and a backward pass."""
    start = time.perf_counter()
    loss(*inputs).backward()
    for tensor in inputs[:2]:
        tensor.grad = None
    return time.perf_counter() - start


def _status(key: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def peak_bytes(name: str, size: tuple[int, int, int]) -> int:
    """Of a forward and a backward pass, in this process, above what it holds before."""
    inputs = _inputs(*size, torch.float32)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # the highest resident set starts again from the present one
    before = _status("VmRSS")
    {"plain": plain, "chunks": in_chunks}[name](*inputs).backward()
    return _status("VmHWM") - before


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunks", type=int, nargs="*", default=[], help="more chunks to try")
    parser.add_argument("--dtypes", nargs="*", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--memory", action="store_true", help="only the table of memory")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(width=120)
    if not arguments.memory:
        keep_freed_memory()
        chunks = [str(chunk) for chunk in arguments.chunks]
        table = Table("head and loss", "dtype", "plain", "chunk", "over plain", *chunks, title="time of the loss in chunks")
        for name, size in SIZES.items():
            for dtype in (getattr(torch, name) for name in arguments.dtypes):
                inputs = _inputs(*size, dtype)
                ways = {"plain": plain, "chosen": in_chunks} | {
                    str(chunk): partial(in_chunks, chunk=chunk) for chunk in arguments.chunks
                }
                rounds = [{way: seconds(loss, inputs) for way, loss in ways.items()} for _ in range(arguments.rounds + 1)][1:]
                ratios = [f"{statistics.median(r[way] / r['plain'] for r in rounds):.3f}" for way in ways if way != "plain"]
                chosen = str(chunk_tokens(inputs[0][0], size[2]))
                base = f"{statistics.median(r['plain'] for r in rounds) * 1e3:.0f} ms"
                table.add_row(name, str(dtype).removeprefix("torch."), base, chosen, *ratios)
        console.print(table)
    tokens, hidden_size, words = LARGE
    chunk = chunk_tokens(torch.empty(tokens, hidden_size), words)
    memory = Table(
        "loss", "peak", "of which the weight's gradient", title=f"{tokens:,} tokens, {hidden_size:,} wide, {words:,} words"
    )
    for way in ("plain", "chunks"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak = pool.apply(peak_bytes, (way, LARGE))
        memory.add_row(way, f"{peak / 2**20:,.0f} MiB", f"{words * hidden_size * 4 / 2**20:,.0f} MiB")
    console.print(memory)
    console.print(
        f"hidden states: {tokens * hidden_size * 4 / 2**20:,.0f} MiB; a chunk of {chunk}: {chunk * words * 4 / 2**20:,.0f} MiB"
    )


if __name__ == "__main__":
    main()
