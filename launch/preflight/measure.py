"""What one process measures of its node and its links."""

import hashlib
import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launch.machine import free_bytes
from launch.ours import PACKAGES, ROOT
from parallel.environment import ProcessEnvironment
from parallel.mesh import World

PACKAGES_COMPARED = ("torch", "numpy", "tokenizers", "safetensors", "hydra-core")
_TRIES = 3
_WRITE_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class Report:
    """Of one process. Rates are the best of three."""

    node: int
    host: str
    rank: int
    device: str
    busy: float
    """share of the device's memory that others use; on a CPU, processes that want to run over cores"""
    memory_bytes: int | None
    """free, of the host or the device"""
    disk_bytes: int | None
    """free where runs are written"""
    write_bytes_per_second: float | None
    disk_error: str | None
    flops_per_second: float
    """of a matrix product"""
    clock_seconds: float
    """its clock minus that of rank 0"""
    versions: dict[str, str]
    pairs: dict[int, float]
    """node (or rank, on a single node) -> bytes/s each way at the same time"""
    all_reduce_bytes_per_second: float
    """over all processes: bytes of the tensor x 2 (n - 1) / n / seconds"""


def measure(world: World, run_dir: Path) -> dict[str, Any]:
    """A collective: every process of the group measures at the same time. Returns a `Report` as plain data."""
    environment = ProcessEnvironment.read()
    per_node = environment.local_world_size
    node = world.rank // per_node
    leads = environment.local_rank == 0
    disk = _disk(run_dir) if leads else (None, None, None)
    dist.barrier()
    report = Report(
        node=node,
        host=os.environ.get("SLURMD_NODENAME", socket.gethostname()),
        rank=world.rank,
        device=torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
        busy=_busy(world.device),
        memory_bytes=torch.cuda.mem_get_info(world.device)[0] if world.device.type == "cuda" else free_bytes(),
        disk_bytes=disk[0],
        write_bytes_per_second=disk[1],
        disk_error=disk[2],
        flops_per_second=_matmul(world.device),
        clock_seconds=_clock(world),
        versions=_versions(),
        pairs=_pairs(world, 1 if per_node == world.size else per_node),
        all_reduce_bytes_per_second=_all_reduce(world),
    )
    return asdict(report)


def _busy(device: torch.device) -> float:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(
            0.0, 1.0 - (free + torch.cuda.memory_reserved(device) + 2**29) / total
        )  # half a GiB is the driver's and ours
    return os.getloadavg()[0] / len(os.sched_getaffinity(0))


def _disk(folder: Path) -> tuple[int | None, float | None, str | None]:
    """(free bytes, bytes/s that are written and synchronised, what went wrong)."""
    path = folder / f".preflight-{socket.gethostname()}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        start = time.perf_counter()
        with open(path, "wb") as stream:
            stream.write(os.urandom(_WRITE_BYTES))
            os.fsync(stream.fileno())
        return free, _WRITE_BYTES / (time.perf_counter() - start), None
    except OSError as error:
        return None, None, f"{folder}: {error.strerror}"
    finally:
        path.unlink(missing_ok=True)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES_COMPARED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    digest = hashlib.sha256()
    for package in sorted(PACKAGES):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found | {"foretrain's code": digest.hexdigest()[:8]}


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    for _ in range(_TRIES + 1):  # the first one warms up
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def _matmul(device: torch.device) -> float:
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (768, torch.float32)
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * side**3 / _best_seconds(lambda: left @ right, device)


def _clock(world: World) -> float:
    """By asking rank 0 for the time, which it says between our two looks at the clock; of several answers the quickest."""
    offset, quickest = 0.0, float("inf")
    for other in range(1, world.size):
        for _ in range(_TRIES):
            if world.rank == 0:
                dist.recv(torch.zeros(1, dtype=torch.float64), src=other)
                dist.send(torch.tensor([time.time()], dtype=torch.float64), dst=other)
            elif world.rank == other:
                answer = torch.zeros(1, dtype=torch.float64)
                before = time.time()
                dist.send(answer, dst=0)
                dist.recv(answer, src=0)
                after = time.time()
                if after - before < quickest:
                    offset, quickest = (before + after) / 2 - answer.item(), after - before
    return offset


def _pairs(world: World, step: int) -> dict[int, float]:
    """Every pair of nodes alone with each other, in rounds in which every node has one partner (the circle method)."""
    places = world.size // step
    me = world.rank // step if world.rank % step == 0 else None
    ring = [*range(places), *([-1] if places % 2 else [])]
    found: dict[int, float] = {}
    for _ in range(len(ring) - 1):
        half = len(ring) // 2
        partners = dict(zip(ring[:half], reversed(ring[half:]), strict=True))
        partners |= {other: one for one, other in partners.items()}
        dist.barrier()
        other = -1 if me is None else partners.get(me, -1)
        if other >= 0:
            found[other] = _exchange(world, other * step)
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return found


def _exchange(world: World, other: int) -> float:
    size = 256 * 2**20 if world.device.type == "cuda" else 4 * 2**20
    mine, theirs = (torch.zeros(size // 4, device=world.device) for _ in range(2))

    def work() -> None:
        for request in dist.batch_isend_irecv([
            dist.P2POp(dist.irecv, theirs, other), dist.P2POp(dist.isend, mine, other),
        ]):  # fmt: skip
            request.wait()

    return size / _best_seconds(work, world.device)


def _all_reduce(world: World) -> float:
    if world.size == 1:
        return 0.0
    size = 256 * 2**20 if world.device.type == "cuda" else 4 * 2**20
    tensor = torch.zeros(size // 4, device=world.device)
    dist.barrier()
    return size * 2 * (world.size - 1) / world.size / _best_seconds(lambda: dist.all_reduce(tensor), world.device)
