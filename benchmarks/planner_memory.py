"""The planner's memory against real runs on this machine.

    python -m benchmarks.planner_memory FOLDER [--only WORD]

Trains every layout of the list for three steps with `foretrain train`, one after the other, and prints predicted against
measured peak memory (live tensor bytes of the fullest rank). FOLDER keeps the runs: `foretrain layout check FOLDER/runs` says
the same again.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

SMALL = (
    "tokenizer=bytes model.num_layers=4 model.hidden_size=128 model.num_heads=4 model.num_kv_heads=4 model.ffn_size=384 "
    "model.vocab_size=512 model.qk_norm=false train.sequence=256 train.microbatch=4 train.batch_tokens=8192 train.steps=3 "
    "eval.tokens=512 schedule.warmup_tokens=0"
)
RUNS = {
    "plain": "",
    "one_pass": "train.microbatch=32",
    "tied": "model.tie_embeddings=true",
    "gelu": "model.ffn=gelu model.ffn_size=512",
    "grouped": "model.num_kv_heads=2 model.qk_norm=true",
    "words": "model.vocab_size=4096",
    "long": "train.sequence=1024 train.microbatch=1",
    "bf16": "train.precision=bf16",
    "fp64": "train.precision=fp64",
    "full": "parallel.recompute=full",
    "selective": "parallel.recompute=selective",
    "bf16_full": "train.precision=bf16 parallel.recompute=full",
    "qat": "quant=qat quant.bits=4 quant.start=0.1 train.steps=8",
    "qat_bf16": "quant=qat quant.bits=4 quant.start=0.1 train.steps=8 train.precision=bf16",
    "replicate": "parallel.replicate=2",
    "shard": "parallel.shard=2",
    "shard_bf16": "parallel.shard=2 train.precision=bf16",
    "shard_full": "parallel.shard=2 parallel.recompute=full train.microbatch=16",
    "tensor": "parallel.tensor=2",
    "tensor_bf16": "parallel.tensor=2 train.precision=bf16",
    "tensor_full": "parallel.tensor=2 parallel.recompute=full",
    "pipeline": "parallel.pipeline=2",
    "gpipe": "parallel.pipeline=2 parallel.pipeline_schedule=gpipe",
    "interleaved": "parallel.pipeline=2 parallel.pipeline_schedule=interleaved",
    "zbv": "parallel.pipeline=2 parallel.pipeline_schedule=zbv",
    "ring": "parallel.context=2 parallel.context_method=ring",
    "token_ring": "parallel.context=2 parallel.context_method=token_ring",
    "ulysses": "parallel.context=2 parallel.context_method=ulysses",
    "tensor_shard": "parallel.tensor=2 parallel.shard=2",
    "pipeline_shard": "parallel.pipeline=2 parallel.shard=2",
}


def run(folder: Path, name: str, words: str) -> str | None:
    """Train one of the runs. Returns what it said if it failed."""
    line = f"run.name={name} run.dir={folder}/runs data.cache_dir={folder}/cache {SMALL} {words}"
    last: dict[str, str] = {}
    for word in line.split():
        last[word.partition("=")[0]] = word
    command = [sys.executable, "-c", "from launch.cli import command; command()", "train", *last.values()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=280)
    return None if answer.returncode == 0 else answer.stderr[-400:]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further run after that many")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    for name, words in RUNS.items():
        record = arguments.folder / "runs" / name / "run.json"
        wanted = arguments.only in name and not record.is_file() and time.perf_counter() - begin < arguments.seconds
        if wanted and (said := run(arguments.folder, name, words)):
            print(f"{name} failed: {said}")
    table(arguments.folder)


def table(folder: Path) -> None:
    """Print what the finished runs measured, and the forecast of today's planner."""
    from parallel.plan.check import check_rows

    checked = check_rows([folder / "runs"], recipe=None, hardware="cpu")
    print("| run | layout | measured, MiB | predicted | error, % |\n|---|---|---|---|---|")
    errors = []
    for row, said in zip(checked.rows, checked.forecasts, strict=True):
        if not row.memory_gib:
            continue
        errors.append(said.memory_gib["total"] / row.memory_gib - 1)
        words = RUNS.get(row.name, "") or "as above the table"
        predicted = 1024 * said.memory_gib["total"]
        print(f"| {row.name} | {words} | {1024 * row.memory_gib:.1f} | {predicted:.1f} | {100 * errors[-1]:+.1f} |")
    sizes = [abs(error) for error in errors]
    print(f"\n{len(sizes)} runs: median error {100 * statistics.median(sizes):.1f} %, worst {100 * max(sizes):.1f} %")


if __name__ == "__main__":
    main()
