"""What this machine can do, measured: matrix products, memory, links between the processes of a torchrun start."""

import os
import time
from pathlib import Path
from typing import Any

import yaml

from common.files import write_atomically
from parallel.environment import ProcessEnvironment
from parallel.plan.hardware import HOST_SHARE, hardware_of, host_memory


def measure_machine() -> dict[str, Any]:
    """The values of a machine's YAML file, measured in about ten seconds on this process's device and threads."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peaks = {
        name: _products(device, dtype)
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32), ("fp64", torch.float64))
    }
    environment = ProcessEnvironment.read()
    devices = environment.local_world_size if environment.launched else devices_here(torch.get_num_threads())
    on_gpu = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else HOST_SHARE * host_memory() / devices
    bandwidth, latency = _links(device, environment) if environment.launched else (1e9, 1e-4)
    return {
        "peak": peaks,
        "memory_gib": round(memory / 2**30, 2),
        "memory_bandwidth": _memory_rate(device),
        "links": [
            {"level": "node", "devices": devices, "bandwidth": bandwidth, "latency": latency},
            {"level": "network", "bandwidth": bandwidth, "latency": latency},
        ],
        "topology": "switch",
        "like": _like(device),
        "source": f"measured with {torch.get_num_threads()} threads a process on {device.type}"
        + ("" if environment.launched else "; links are assumed: measure them under torchrun"),
    }


def devices_here(threads: int) -> int:
    """Devices of this node: its GPUs, else as many processes of `threads` threads as its cores feed."""
    import torch

    return max(1, torch.cuda.device_count() if torch.cuda.is_available() else (os.cpu_count() or 1) // threads)


def _like(device: Any) -> str:
    """The known machine whose constants serve: the GPU's own kind, else an H100; a CPU's for a CPU."""
    import torch

    if device.type != "cuda":
        return "cpu"
    known = hardware_of(torch.cuda.get_device_name(device))
    return known.name if known else "h100"


def _timed(call: Any, device: Any, seconds: float = 0.6) -> float:
    """Seconds of the fastest call: what neighbours on the machine take is no property of it."""
    import torch

    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def _products(device: Any, dtype: Any) -> float:
    import torch

    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    return float(f"{2.0 * side**3 / _timed(lambda: left @ right, device):.4g}")


def _memory_rate(device: Any) -> float:
    import torch

    source = torch.ones(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    return float(f"{2 * source.nbytes / _timed(lambda: target.copy_(source), device):.4g}")


def _links(device: Any, environment: ProcessEnvironment) -> tuple[float, float]:
    """bytes/s that a rank sends in an all-gather, and seconds of a small one."""
    import torch
    import torch.distributed as dist

    from parallel.mesh import connect

    with connect(environment) as world:
        sizes = {"large": 2**23, "small": 16}
        times = {}
        for name, size in sizes.items():
            own = torch.ones(size, device=world.device)
            whole = torch.empty(size * world.size, device=world.device)
            times[name] = _timed(lambda own=own, whole=whole: dist.all_gather_into_tensor(whole, own), world.device, 1.0)
        sent = 4.0 * sizes["large"] * (world.size - 1)
    return float(f"{sent / times['large']:.4g}"), float(f"{times['small']:.3g}")


def write_machine(machine: dict[str, Any], path: Path) -> None:
    """Write a machine's file in one stroke."""
    write_atomically(path, yaml.safe_dump(machine, sort_keys=False))
