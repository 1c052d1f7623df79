"""What a run says about itself: its record at the start, its speed while it goes."""

import dataclasses
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist

from parallel.mesh import World
from parallel.plan.hardware import dense_peak
from scaling.record import RunRecord
from train.build import COMPUTE_DTYPES
from train.checkpoint.saver import Saver
from train.config import Config
from train.config.context import context_method
from train.config.sections import QatConfig
from train.quantization import quantizer_name
from train.run_directory import now

WARMUP_STEPS = 2  # left out of the speed: first allocations, compilation and the memory tracker fall into them


def new_record(config: Config, world: World) -> RunRecord:
    """The record of a run that starts now."""
    shape = config.model.shape
    return RunRecord(
        name=config.run.name,
        status="running",
        seed=config.run.seed,
        parameters=shape.parameters,
        parameters_non_embedding=shape.parameters_non_embedding,
        tokens=0,
        flops=0.0,
        tokens_per_parameter=0.0,
        bits=config.quant.bits if isinstance(config.quant, QatConfig) else None,
        quantizer=quantizer_name(config.quant) if isinstance(config.quant, QatConfig) else None,
        peak_learning_rate=config.schedule.peak,
        schedule=config.schedule.name,
        batch_tokens=config.train.batch_tokens,
        sequence=config.train.sequence,
        trunk=config.run.trunk,
        model=dataclasses.asdict(config.model),
        layout=dataclasses.asdict(config.parallel.layout),
        context_method=context_method(config)[0] if config.parallel.context > 1 else None,
        engine=config.parallel.engine,
        precision=config.train.precision,
        device=_device_name(world.device),
        world_size=world.size,
        config_hash=config.identity_hash(),
        git_commit=_git_commit(),
        versions={name: version(name) for name in ("foretrain", "torch", "numpy", "tokenizers")}
        | {"python": platform.python_version()},
        started=now(),
    )


def update(record: RunRecord, config: Config, speeds: list[float], peak_flops: float | None, wall_seconds: float) -> None:
    """Bring counts, speed and MFU of a record up to date. The speed is the median after the warm-up of `speeds` (tokens/s)."""
    record.flops = 6.0 * record.parameters * record.tokens
    record.tokens_per_parameter = record.tokens / record.parameters
    record.wall_seconds = wall_seconds
    if not speeds:
        return
    measured = sorted(speeds[WARMUP_STEPS:] or speeds)
    record.tokens_per_second = measured[(len(measured) - 1) // 2]
    if peak_flops is not None:
        shape, sequence = config.model.shape, config.train.sequence
        record.mfu = record.tokens_per_second * shape.flops_per_token(sequence) / peak_flops
        record.mfu_causal = record.tokens_per_second * shape.flops_per_token(sequence, causal=True) / peak_flops


def total_peak_flops(device: torch.device, precision: str, *, known: float | None = None) -> float | None:
    """Dense peak FLOP/s of all ranks' devices together; None where one is not known. A collective.

    A CPU's is measured, and may be disturbed by other work: the larger of this measurement and the one `known` counts.
    """
    peak = torch.tensor(dense_peak(device, COMPUTE_DTYPES[precision]) or float("nan"), dtype=torch.float64)
    dist.all_reduce(peak)
    return None if peak.isnan() else max(float(peak), known or 0.0)


def largest(value: int | None) -> int | None:
    """The largest of all ranks' values; None where no rank has one. A collective."""
    most = torch.tensor(-1 if value is None else value, dtype=torch.int64)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return None if most < 0 else int(most)


def checkpoints(saver: Saver) -> dict[str, float]:
    """What saving has cost this process and its ranks."""
    if not saver.saved:
        return {}
    return {
        "saved": len(saver.saved),
        "bytes": saver.saved[-1].bytes,
        "stall_seconds": saver.stall_seconds,
        "cpu_seconds": sum(saved.cpu_seconds for saved in saver.saved),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git_commit() -> str | None:
    """The commit this code was checked out at; None where it does not lie in its own checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    result = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None
