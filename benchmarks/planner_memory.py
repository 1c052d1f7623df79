"""The planner's memory against what training steps of the engine need on this machine.

    python -m benchmarks.planner_memory [--only WORD]

Builds the engine of every layout of the list, trains two steps on packed documents, and prints predicted against measured peak
memory (live tensor bytes of the fullest rank, as the trainer measures them). Runs of one's own: `foretrain layout check RUNS`.
"""

import argparse
import statistics
from collections import defaultdict

import torch

from parallel.batch import Batch
from parallel.mesh import World, build_meshes
from parallel.plan.hardware import load_hardware
from parallel.plan.memory import memory
from tests.support.group import Group
from train.build.engine import build_engine
from train.build.model import COMPUTE_DTYPES
from train.build.quantization import Quantization
from train.config import load_config, require
from train.config.resolve.microbatch import job_of
from train.loop.memory import PeakMemory

SMALL = (
    "tokenizer=bytes model.num_layers=4 model.hidden_size=128 model.num_heads=4 model.num_kv_heads=4 model.ffn_size=384 "
    "model.vocab_size=512 model.qk_norm=false train.sequence=256 train.microbatch=4 train.batch_tokens=8192 train.steps=8 "
    "schedule.warmup_tokens=0"
)
QAT = "quant=qat quant.bits=4 quant.start=0.1"
RUNS = {
    "plain": "",
    "one pass": "train.microbatch=32",
    "tied": "model.tie_embeddings=true",
    "gelu": "model.ffn=gelu model.ffn_size=512",
    "grouped heads": "model.num_kv_heads=2 model.qk_norm=true",
    "4,096 words": "model.vocab_size=4096",
    "long rows": "train.sequence=1024 train.microbatch=1",
    "wide": "model.hidden_size=256 model.ffn_size=768 model.num_layers=2",
    "bf16": "train.precision=bf16",
    "fp64": "train.precision=fp64",
    "full": "parallel.recompute=full",
    "selective": "parallel.recompute=selective",
    "bf16, full": "train.precision=bf16 parallel.recompute=full",
    "bf16, selective": "train.precision=bf16 parallel.recompute=selective",
    "qat": QAT,
    "qat, bf16": f"{QAT} train.precision=bf16",
    "qat, full": f"{QAT} parallel.recompute=full",
    "replicate": "parallel.replicate=2",
    "shard": "parallel.shard=2",
    "shard, bf16": "parallel.shard=2 train.precision=bf16",
    "shard, full": "parallel.shard=2 parallel.recompute=full train.microbatch=16",
    "shard, qat": f"parallel.shard=2 {QAT}",
    "tensor": "parallel.tensor=2",
    "tensor, bf16": "parallel.tensor=2 train.precision=bf16",
    "tensor, full": "parallel.tensor=2 parallel.recompute=full",
    "tensor, selective": "parallel.tensor=2 parallel.recompute=selective",
    "1f1b": "parallel.pipeline=2",
    "gpipe": "parallel.pipeline=2 parallel.pipeline_schedule=gpipe",
    "interleaved": "parallel.pipeline=2 parallel.pipeline_schedule=interleaved",
    "zbv": "parallel.pipeline=2 parallel.pipeline_schedule=zbv",
    "dualpipev": "parallel.pipeline=2 parallel.pipeline_schedule=dualpipev",
    "ring": "parallel.context=2 parallel.context_method=ring",
    "token ring": "parallel.context=2 parallel.context_method=token_ring",
    "ulysses": "parallel.context=2 parallel.context_method=ulysses",
    "tensor x shard": "parallel.tensor=2 parallel.shard=2",
    "pipeline x shard": "parallel.pipeline=2 parallel.shard=2",
}


def words_of(name: str) -> list[str]:
    """The overrides of a run: what it says goes before what all have."""
    last = {word.partition("=")[0]: word for word in f"{SMALL} {RUNS[name]}".split()}
    return list(last.values())


def peak(world: World, overrides: list[str]) -> int:
    """Peak of live tensor bytes of this rank over two steps."""
    config = load_config(overrides)
    require(config, world_size=world.size)
    meshes = build_meshes(config.parallel.layout, world.device)
    engine = build_engine(config, meshes, world.device)
    quantization = Quantization(config, engine, COMPUTE_DTYPES[config.train.precision])
    if config.low_precision is not None:
        quantization.begin()
    draw = torch.Generator().manual_seed(meshes.data_rank)
    shape = (config.train.microbatch, config.train.sequence)
    batches = [
        Batch(
            torch.randint(256, shape, generator=draw),
            torch.randint(256, shape, generator=draw),
            (torch.rand(shape, generator=draw) < 0.01).cumsum(dim=1),
        )
        for _ in range(config.accumulation)
    ]
    measured = PeakMemory(world.device, [parameter for _, parameter in engine.named_parameters()], watch=True)
    for step in range(PeakMemory.WATCHED_STEPS):
        watching = measured.watching(step)
        assert watching is not None
        with watching:
            engine.train_step(batches, learning_rate=1e-3, tokens=config.train.batch_tokens)
    return measured.peak_bytes() or 0


def peaks(world: World, runs: list[list[str]]) -> list[int]:
    """`peak` of one run after the other."""
    torch.set_num_threads(1)
    return [peak(world, overrides) for overrides in runs]


def main() -> None:
    """Measure, predict, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    wanted = parser.parse_args().only
    groups: dict[int, list[str]] = defaultdict(list)
    for name in RUNS:
        if wanted in name:
            groups[load_config(words_of(name)).parallel.layout.world_size].append(name)
    print("| run | overrides | measured, MiB | predicted | error, % |\n|---|---|---|---|---|")
    errors = []
    for size, names in sorted(groups.items()):
        by_rank = Group(size).run(peaks, [words_of(name) for name in names], timeout=900.0)
        for name, of_ranks in zip(names, zip(*by_rank, strict=True), strict=True):
            measured = max(of_ranks)
            predicted = memory(job_of(load_config(words_of(name)), load_hardware("cpu")))["total"]
            errors.append(predicted / measured - 1)
            sizes = f"{measured / 2**20:.1f} | {predicted / 2**20:.1f} | {100 * errors[-1]:+.1f}"
            print(f"| {name} | {RUNS[name]} | {sizes} |", flush=True)
    misses = [abs(error) for error in errors]
    print(f"\n{len(misses)} layouts: median error {100 * statistics.median(misses):.1f} %, worst {100 * max(misses):.1f} %")


if __name__ == "__main__":
    main()
