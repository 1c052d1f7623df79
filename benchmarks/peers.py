"""Tokens per second beside what a user would pick instead, in turns.

    python -m benchmarks.peers [--rounds 3] [--steps 8] [--precision fp32] [--length 512]

On one process: a bare PyTorch loop, Hugging Face's Trainer, and litgpt's model in the bare loop (if installed).
On two: bare DistributedDataParallel beside parallel.replicate=2, bare FSDP2 beside parallel.shard=2. Every side is a command of
its own, trains a model of 4 layers of width 256 on the same windows of the same corpus, and reports its median step without
the first two. A figure is the median of the rounds' ratios to the trainer on as many processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parallel.environment import ProcessEnvironment, keep_freed_memory, spin_briefly

MODEL = ["model.num_layers=4", "model.hidden_size=256", "model.num_heads=4", "model.ffn_size=704", "model.qk_norm=false"]
SIDES = {  # name -> (what it is compared with, processes)
    "bare loop": ("trainer", 1),
    "Hugging Face Trainer": ("trainer", 1),
    "litgpt": ("trainer", 1),
    "DDP": ("trainer, replicate=2", 2),
    "FSDP2": ("trainer, shard=2", 2),
}
OURS = {"trainer": "single=1", "trainer, replicate=2": "replicate=2", "trainer, shard=2": "shard=2"}


def words(arguments: argparse.Namespace) -> list[str]:
    """The overrides of every side."""
    rows = max(1, 2048 // arguments.length)
    return [
        *MODEL,
        *(
            f"train.sequence={arguments.length}",
            f"train.microbatch={rows}",
            f"train.batch_tokens={4 * rows * arguments.length}",
        ),
        *(f"train.steps={arguments.steps}", f"train.precision={arguments.precision}", "train.compile=false"),
        *("schedule=constant", "schedule.warmup_tokens=0", "eval.tokens=256"),
    ]


def of_trainer(overrides: list[str], layout: str) -> float:
    """By `foretrain train`."""
    from scaling.record import StepLine, read_metrics
    from train.config import load_config

    with tempfile.TemporaryDirectory() as folder:
        more = [] if layout == "single=1" else [f"parallel.{layout}"]
        command = [str(Path(sys.executable).with_name("foretrain")), "train", *overrides, *more, f"run.dir={folder}"]
        subprocess.run(command, check=True, capture_output=True)
        lines = read_metrics(Path(folder) / "run")
        seconds = [line.step_seconds for line in lines if isinstance(line, StepLine)]
    return load_config(overrides).train.batch_tokens / statistics.median(seconds[2:])


def _ready(overrides: list[str], processes: int) -> tuple[Any, Any, int]:
    """(configuration, loader of samples, this process's number), with the threads and the allocator that the trainer sets."""
    import torch
    import torch.distributed as dist

    from train.config import load_config
    from train.data.loader import TrainLoader
    from train.data.prepare import prepare
    from train.data.shards import open_shards

    environment = ProcessEnvironment.read()
    torch.set_num_threads(environment.threads or torch.get_num_threads())
    keep_freed_memory()
    torch.manual_seed(0)
    if processes > 1:
        dist.init_process_group("gloo")
    config = load_config([*overrides, *([f"parallel.replicate={processes}"] if processes > 1 else [])])
    stream = open_shards(prepare(config.data, config.tokenizer, progress=False)).train
    return config, TrainLoader(stream, config.train.sequence, config.run.seed), environment.rank


def of_bare_loop(overrides: list[str]) -> float:
    """Plain PyTorch."""
    from benchmarks import bare

    config, loader, _ = _ready(overrides, 1)
    model = bare.BareDecoder(config.model.shape)
    return bare.train(model, model, config, loader)


def of_ddp(overrides: list[str]) -> float:
    """The bare loop under DistributedDataParallel."""
    from torch.nn.parallel import DistributedDataParallel

    from benchmarks import bare

    config, loader, rank = _ready(overrides, 2)
    wrapped = DistributedDataParallel(bare.BareDecoder(config.model.shape))

    def last_of_step(last: bool) -> None:
        wrapped.require_backward_grad_sync = last  # what its no_sync() sets

    return bare.train(wrapped, wrapped, config, loader, rank=rank, ranks=2, last_of_step=last_of_step)


def of_fsdp(overrides: list[str]) -> float:
    """The bare loop under fully_shard, block by block."""
    from torch.distributed.fsdp import fully_shard

    from benchmarks import bare

    config, loader, rank = _ready(overrides, 2)
    model: Any = bare.BareDecoder(config.model.shape)
    for module in [*model.blocks, model]:
        fully_shard(module)
    return bare.train(model, model, config, loader, rank=rank, ranks=2, last_of_step=model.set_requires_gradient_sync)


def of_litgpt(overrides: list[str]) -> float:
    """litgpt's model."""
    from litgpt.config import Config as LitConfig  # type: ignore[import-not-found]
    from litgpt.model import GPT  # type: ignore[import-not-found]

    from benchmarks import bare

    config, loader, _ = _ready(overrides, 1)
    shape = config.model.shape
    model = GPT(
        LitConfig(
            block_size=config.train.sequence, n_layer=shape.num_layers, n_embd=shape.hidden_size, n_head=shape.num_heads,
            n_query_groups=shape.num_kv_heads, padded_vocab_size=shape.vocab_size, vocab_size=shape.vocab_size,
            rotary_percentage=1.0, parallel_residual=False, bias=False, norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP", intermediate_size=shape.ffn_size,
        )
    )  # fmt: skip
    return bare.train(model, model, config, loader)


def of_hugging_face(overrides: list[str]) -> float:
    """transformers' Llama and Trainer."""
    import time

    import torch
    from torch.utils.data import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    config, loader, _ = _ready(overrides, 1)
    shape, rows = config.model.shape, config.train.microbatch

    class Windows(Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return int(config.steps * config.accumulation * rows)

        def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
            batch = loader.batch([number])
            return {"input_ids": batch.tokens_BS[0], "labels": batch.tokens_BS[0]}

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter() - self.start)

    shapes = LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, intermediate_size=shape.ffn_size,
        num_hidden_layers=shape.num_layers, num_attention_heads=shape.num_heads, num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=config.train.sequence, tie_word_embeddings=shape.tie_embeddings, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(shapes)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, per_device_train_batch_size=rows, gradient_accumulation_steps=config.accumulation, max_steps=config.steps,
            optim="adamw_torch_fused", bf16=config.train.precision == "bf16", use_cpu=True, report_to=[], save_strategy="no",
            logging_steps=1, disable_tqdm=True,
        )  # fmt: skip
        Trainer(model, settings, train_dataset=Windows(), callbacks=[clock]).train()
    return float(config.train.batch_tokens / statistics.median(clock.times[2:]))


MEASURES: dict[str, Callable[[list[str]], float]] = {
    "bare loop": of_bare_loop,
    "Hugging Face Trainer": of_hugging_face,
    "litgpt": of_litgpt,
    "DDP": of_ddp,
    "FSDP2": of_fsdp,
}


def measure(name: str, arguments: argparse.Namespace) -> float | None:
    """Tokens per second of a side, in processes of its own; None where its library is not installed."""
    if name in OURS:
        return of_trainer(words(arguments), OURS[name])
    options = [f"--{key}={getattr(arguments, key)}" for key in ("steps", "precision", "length")]
    start = [sys.executable, "-m"]
    if SIDES[name][1] > 1:
        start += ["torch.distributed.run", "--nproc-per-node", str(SIDES[name][1]), "-m"]
    ended = subprocess.run([*start, "benchmarks.peers", *options, "--side", name], capture_output=True, text=True)
    if ended.returncode and ("ModuleNotFoundError" in ended.stderr or "requires `accelerate" in ended.stderr):
        return None
    if ended.returncode:
        raise SystemExit(f"{name} failed:\n{ended.stderr[-3000:]}")
    return float(json.loads([line for line in ended.stdout.splitlines() if line.startswith("{")][-1])["speed"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    spin_briefly()
    if arguments.side:
        speed = MEASURES[arguments.side](words(arguments))
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps({"speed": speed}), flush=True)
        return
    from rich.console import Console
    from rich.table import Table

    from train.config import load_config
    from train.data.prepare import prepare

    config = load_config(words(arguments))
    prepare(config.data, config.tokenizer, progress=True)
    names = list(dict.fromkeys([*(SIDES[side][0] for side in arguments.sides), *arguments.sides]))
    rounds = []
    for _ in range(arguments.rounds):
        rounds.append({name: measure(name, arguments) for name in names})
        print({name: speed and round(speed) for name, speed in rounds[-1].items()}, file=sys.stderr, flush=True)
    table = Table(
        "peer",
        "processes",
        "its tokens/s",
        "trainer over it",
        "from",
        "to",
        title=f"{arguments.precision}, {arguments.length} tokens",
    )
    for side in arguments.sides:
        ours, processes = SIDES[side]
        pairs = [(number[ours], number[side]) for number in rounds]
        ratios = [one / other for one, other in pairs if one and other]
        if not ratios:
            table.add_row(side, str(processes), "not installed", "", "", "")
            continue
        speed = statistics.median(other for _, other in pairs if other)
        cells = (f"{ratio:.3f}" for ratio in (statistics.median(ratios), min(ratios), max(ratios)))
        table.add_row(side, str(processes), f"{speed:,.0f}", *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
