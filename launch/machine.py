"""Whether this machine has room for the processes of a layout: cores or devices, and memory."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from common.errors import UserError
from parallel.plan.memory import rank_memory
from train.config import Config, job_of, local_hardware

WORKER_GIB = 0.25
"""memory of a process before it holds anything of the model: the interpreter and torch"""

OFFLOADED = {"none": 0, "optimizer": 4, "parameters": 5}
"""what lies in the host's memory beside a GPU: master weights, gradients, two moments; with the parameters, these too"""
_GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")


def require_room(config: Config, copies: int | None = None, nodes: int = 1) -> None:
    """Refuse a layout that this machine cannot carry, unless `parallel.oversubscribe` is set.

    Training is counted as the planner predicts it, as `train.dry_run=true` does; with `copies`, and where training offloads to
    the host of GPUs, so many copies of every weight in each replica are. This is one of `nodes`.

    Raises:
        UserError: the processes are more than cores or devices, or need more memory than is free.
    """
    if config.parallel.oversubscribe or config.train.dry_run:
        return
    size = config.parallel.layout.world_size // nodes
    gpus = devices() if size > 1 or config.parallel.offload != "none" else 0
    problems = [*_processes(size, gpus), *_memory(config, size, OFFLOADED[config.parallel.offload] if gpus else copies, nodes)]
    if problems:
        raise UserError(
            "\n".join(
                [
                    f"this machine has no room for the layout {config.parallel.layout}:",
                    *(f"  {problem}" for problem in problems),
                    "lower parallel.* or the model, start it on more machines with torchrun, or type "
                    "parallel.oversubscribe=true to start it all the same",
                ]
            )
        )


def _processes(size: int, devices: int) -> Iterator[str]:
    cores = len(os.sched_getaffinity(0))
    room, kind = (devices, "GPU") if devices else (cores, "core")
    if size > max(1, room):
        yield f"{size:,} processes on {room} {kind}{'s' * (room != 1)}"


def _memory(config: Config, size: int, copies: int | None, nodes: int) -> Iterator[str]:
    free = free_bytes()
    state = (_trained(config) if copies is None else _weights(config) * copies) / nodes
    needed = size * WORKER_GIB * _GIB + state
    if free is not None and needed > free:
        kinds = "weights, gradients, optimizer state and activations, predicted" if copies is None else "weights"
        kinds += ", gradients and optimizer state" if copies in OFFLOADED.values() else ""
        held = f" and {state / _GIB:,.2f} GiB of {kinds}" if state else ""
        yield (
            f"{needed / _GIB:,.1f} GiB are needed, {free / _GIB:,.1f} GiB are free: {size:,} x {WORKER_GIB} GiB for the "
            f"process{'es' * (size > 1)}{held}"
        )


def _trained(config: Config) -> float:
    """Bytes in the host's memory of all ranks together while they train, as the planner predicts them; none beside a GPU."""
    layout = config.parallel.layout
    hardware = local_hardware(layout.world_size, config.train.device)
    if hardware.kind != "cpu" and config.train.device != "cpu":
        return 0.0
    job = job_of(config, hardware)
    highest = sum(rank_memory(job, rank)["total"] for rank in range(layout.pipeline))
    return highest * layout.world_size / layout.pipeline


def _weights(config: Config) -> float:
    """Bytes of the weights, once in every replica."""
    itemsize = 8 if config.train.precision == "fp64" else 4
    return config.model.shape.parameters * config.parallel.replicate * itemsize


def free_bytes() -> int | None:
    """Memory that this process may still use: of the machine, or of its control group where that has less."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    for folder, limit, used, cached in (
        (_CGROUP, "memory.max", "memory.current", "inactive_file"),
        (_CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError, KeyError):  # "max": no limit
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            usage = int((folder / used).read_text()) - int(statistics[cached])
            found.append(int((folder / limit).read_text()) - usage)
    return min(found, default=None)


def places_for_processes() -> int:
    """Devices of this machine, or cores where it has none."""
    return devices() or len(os.sched_getaffinity(0))


def devices() -> int:
    """GPUs of this machine."""
    import torch

    return torch.cuda.device_count()
