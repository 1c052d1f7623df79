"""The record of a new run: its identity, and the machine and software that it runs on."""

import dataclasses
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from common.words import timestamp
from parallel.engine.limits import distribution
from parallel.mesh import World
from scaling.record import RunRecord
from train.build.quantization import method_of
from train.config import Config
from train.config.resolve.context import context_method


def new_record(config: Config, world: World) -> RunRecord:
    """The record of a run that starts now."""
    shape, method = config.model.shape, method_of(config.quant)
    library = distribution(config.parallel.engine)
    return RunRecord(
        name=config.run.name,
        status="running",
        seed=config.run.seed,
        parameters=shape.parameters,
        parameters_non_embedding=shape.parameters_non_embedding,
        tokens=0,
        flops=0.0,
        tokens_per_parameter=0.0,
        bits=None if config.low_precision is None else config.low_precision.stored_bits,
        quantizer=None if method is None else method.description,
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
        versions={name: _version(name) for name in ("foretrain", "torch", "numpy", "tokenizers", library) if name}
        | {"python": platform.python_version()},
        started=timestamp(),
    )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # our code may be run without having been installed
        return "unknown"


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
    """The commit of this code's git checkout; None if it is not in one, or there is no git."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    result = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None
