"""The overhead of the trainer: its tokens per second over a bare PyTorch loop's, and two processes over one.

    .venv/bin/python -m benchmarks.overhead [--rounds 7] [--steps 14] [overrides]

Both train the same model on the same data with the same optimizer, in turn, on all cores. A round gives the ratio of its median
steps; the result is the median ratio over rounds. The first two steps of every turn (allocation; in the trainer also the memory
tracker) do not count. The bare loop reads its loss every step, as such loops do.
"""

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from parallel.environment import ProcessEnvironment
from parallel.mesh import connect
from scaling.record import StepLine, read_metrics, read_record
from train.build.model import PARAMETER_DTYPES, build_model
from train.config import Config, load_config, require
from train.data.loader import TrainLoader
from train.data.prepare import prepare
from train.data.shards import open_shards
from train.loop.run import run
from train.loop.throughput import WARMUP_STEPS


def bare_loop(config: Config, shards_folder: Path) -> float:
    """Tokens per second of the median step of a loop in bare PyTorch."""
    torch.manual_seed(0)
    model = build_model(config.model, PARAMETER_DTYPES[config.train.precision], torch.device("cpu"))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=config.model.init_std)
    matrices = [p for name, p in model.named_parameters() if p.dim() > 1 and not name.startswith("embedding")]
    others = [p for name, p in model.named_parameters() if p.dim() == 1 or name.startswith("embedding")]
    groups = [{"params": matrices, "weight_decay": config.optimizer.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.schedule.peak, betas=(0.9, 0.95), fused=True)
    loader = TrainLoader(open_shards(shards_folder).train, config.train.sequence, config.run.seed)
    sample, seconds = 0, []
    for _ in range(config.steps):
        start = time.perf_counter()
        total = 0.0
        for _ in range(config.accumulation):
            batch = loader.batch(range(sample, sample + config.train.microbatch))
            sample += config.train.microbatch
            logits = model(batch.tokens_BS, batch.document_BS)
            loss = F.cross_entropy(logits.flatten(0, 1), batch.targets_BS.flatten()) / config.accumulation
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    return config.train.batch_tokens / statistics.median(seconds[WARMUP_STEPS:])


def trainer(overrides: list[str], folder: Path) -> float:
    """Tokens per second of the median step of the trainer, in this process."""
    config = load_config([*overrides, f"run.dir={folder}"])
    require(config, world_size=1)
    with connect(ProcessEnvironment.read()) as world, redirect_stdout(io.StringIO()):
        run(config, world)
    lines = [line.step_seconds for line in read_metrics(folder / config.run.name) if isinstance(line, StepLine)]
    return config.train.batch_tokens / statistics.median(lines[WARMUP_STEPS:])


def command(overrides: list[str], folder: Path) -> float:
    """Tokens per second that `foretrain train` records."""
    words = [str(Path(sys.executable).with_name("foretrain")), "train", *overrides, f"run.dir={folder}"]
    subprocess.run(words, check=True, capture_output=True)
    return read_record(folder / "run").tokens_per_second or 0.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=14)
    arguments, overrides = parser.parse_known_args()
    overrides = [
        *overrides,
        f"train.steps={arguments.steps}",
        "schedule=constant",
        "schedule.warmup_tokens=0",
        "eval.tokens=256",
    ]
    config = load_config(overrides)
    shards_folder = prepare(config.data, config.tokenizer, progress=True)
    bare, trained, one, two = [], [], [], []
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            bare.append(bare_loop(config, shards_folder))
            trained.append(trainer(overrides, folder / "a"))
            one.append(command(overrides, folder / "b"))
            two.append(command([*overrides, "parallel.shard=2"], folder / "c"))
        print(
            f"round {number + 1}: bare {bare[-1]:,.0f}, trainer {trained[-1]:,.0f} tokens/s, "
            f"ratio {trained[-1] / bare[-1]:.3f}; one process {one[-1]:,.0f}, two {two[-1]:,.0f}, "
            f"ratio {two[-1] / one[-1]:.3f}",
            flush=True,
        )
    for what, sides in (("trainer / bare loop", (trained, bare)), ("two processes / one", (two, one))):
        ratios = sorted(left / right for left, right in zip(*sides, strict=True))
        print(f"{what}: median {statistics.median(ratios):.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f}")


if __name__ == "__main__":
    main()
