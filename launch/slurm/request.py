"""What a run asks of a cluster, and what speaks against it before anything is queued."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from common.errors import UserError, WorkFailed
from launch.forecast import Expected, checkpoint_seconds
from launch.slurm.cluster import Cluster
from train.config import Config

_START_SECONDS = 60.0
"""before the first step of a job: modules, imports, the checkpoint"""


@dataclass(frozen=True)
class Shape:
    """Nodes, and processes on each."""

    nodes: int
    processes: int


def shape_of(config: Config, cluster: Cluster) -> Shape:
    """The fewest nodes that carry a layout.

    Raises:
        UserError: the layout does not divide over nodes, or needs more than a job may have.
    """
    size, most = config.parallel.layout.world_size, cluster.processes_per_node
    nodes = -(-size // most)
    if size % nodes:
        raise UserError(
            f"the layout {config.parallel.layout} has {size} processes, which do not divide over {nodes} nodes of {most}: "
            f"change parallel.*, or type --processes-per-node"
        )
    if nodes > cluster.nodes:
        raise UserError(
            f"the layout {config.parallel.layout} needs {nodes} nodes of {most} processes, a job on {cluster.name} may have "
            f"{cluster.nodes}: a smaller layout, or --nodes {nodes} where your site allows it"
        )
    return Shape(nodes, size // nodes)


def problems(config: Config, cluster: Cluster, expected: Expected) -> Iterator[str]:
    """What is inconsistent in time and memory, a line each."""
    usable = cluster.seconds - cluster.warning_seconds - _START_SECONDS
    interval = checkpoint_seconds(config, expected)
    if usable <= 0:
        yield f"time={cluster.time} leaves nothing after warning_seconds={cluster.warning_seconds} and a start: type --time"
    elif interval > usable:
        yield (
            f"time={cluster.time} is too short for one checkpoint interval: about {interval:,.0f} s by the forecast, and "
            f"{usable:,.0f} s are left before the warning: type a longer --time, or a smaller checkpoint.every_tokens"
        )
    if not expected.fits:
        yield (
            f"it will not fit: {expected.memory_gib:,.1f} of {expected.capacity_gib:,.1f} GiB a device by the forecast; lower "
            "train.microbatch, raise parallel.shard, or --force"
        )


def require_slurm() -> None:
    """Raises UserError: there is no sbatch here."""
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch here: type this on a login node of the cluster, or --dry-run to see the script")


def require_partition(cluster: Cluster, shape: Shape) -> None:
    """Compare the request with what the scheduler says of the partition.

    Raises:
        UserError: there is no such partition, or its nodes are fewer or smaller.
    """
    lines = [line.split("|") for line in slurm("sinfo", "--noheader", "--format=%R|%D|%c|%m|%G").splitlines()]
    rows = [line for line in lines if len(line) == 5 and cluster.partition in (None, line[0])]
    if not rows:
        there = ", ".join(sorted({line[0] for line in lines}))
        raise UserError(f"partition '{cluster.partition}' does not exist here (there is {there}): type --partition")
    where = f"partition {cluster.partition or rows[0][0]}"
    nodes, cpus, memory = sum(_number(row[1]) for row in rows), *(max(_number(row[each]) for row in rows) for each in (2, 3))
    gpus = max(_gpus(row[4]) for row in rows)
    asked = cluster.gpus_per_node and shape.processes
    if shape.nodes > nodes:
        raise UserError(f"{where} has {nodes} nodes, the layout needs {shape.nodes}: a smaller layout, or another --partition")
    if asked > gpus:
        raise UserError(f"{where} has {gpus} GPUs a node, {asked} are asked for: type --gpus-per-node and --processes-per-node")
    if cluster.cpus_per_node > cpus:
        raise UserError(f"{where} has {cpus} CPUs a node, cpus_per_node={cluster.cpus_per_node}: type --cpus-per-node {cpus}")
    if cluster.memory_gib is not None and cluster.memory_gib * 1024 > memory:
        raise UserError(f"{where} has {memory / 1024:,.0f} GiB a node, memory_gib={cluster.memory_gib:g}: lower it in the file")


def slurm(*words: str, **variables: str) -> str:
    """What a command of SLURM's says.

    Raises:
        WorkFailed: it failed.
    """
    import os

    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=os.environ | variables)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WorkFailed(f"{words[0]} does not answer: {error}") from None
    if done.returncode:
        raise WorkFailed(f"{words[0]} refuses: {' '.join(done.stderr.split())[:300]}")
    return done.stdout


def _number(text: str) -> int:
    digits = "".join(character for character in text if character.isdigit())
    return int(digits or 0)


def _gpus(resources: str) -> int:
    """Of a node: "gpu:h100:8(S:0-1)" has 8."""
    counts = [part.split("(")[0].split(":")[-1] for part in resources.split(",") if part.startswith("gpu")]
    return sum(_number(count) for count in counts)
