"""Seconds of collectives and messages on the link that they must cross. Standard library only.

Devices are numbered with the tensor axis innermost, then context, shard, replicate, pipeline (`parallel/mesh.py`): so a group
of
`size` ranks, `stride` devices apart, spans size x stride devices, and crosses the innermost level that holds that many.
"""

import math
from typing import Literal

from parallel.plan.hardware import Link
from parallel.plan.job import Job

Kind = Literal["all_gather", "reduce_scatter", "all_reduce"]


def level_of(job: Job, size: int, stride: int) -> Link:
    """The link that a group crosses."""
    links = job.hardware.links
    return next((link for link in links if link.devices is None or link.devices >= size * stride), links[-1])


def leaves_node(job: Job, size: int, stride: int) -> bool:
    """Whether a group has devices of several nodes."""
    return size > 1 and size * stride > job.hardware.node_devices


def bandwidth(job: Job, size: int, stride: int, kind: Kind = "all_gather") -> float:
    """bytes/s at which each rank of a group sends in a ring.

    Between nodes a ring uses the ports of all of its members in a node, and shares a node's ports with the other groups.
    """
    constants, link = job.constants, level_of(job, size, stride)
    if not leaves_node(job, size, stride):
        wires = (size - 1) / ((link.devices or size) - 1) if link.mesh and size > 1 else 1.0
        return link.bandwidth * wires * constants.node_efficiency
    node = job.hardware.node_devices
    members = max(1.0, min(size, node / stride))
    inner = next(own for own in reversed(job.hardware.links) if own.devices is not None) if node > 1 else link
    # A measurement is of all nodes; a group that spans fewer has more.
    crossed, everywhere = size * stride / node, max(1.0, job.choice.gpus / node)
    measured: float | None = getattr(job.measured, kind)
    if measured:
        port = measured / node * math.pow(max(1.0, everywhere / crossed), constants.network_decay)
    else:
        port = link.bandwidth * constants.network_efficiency / math.pow(max(1.0, crossed / 2), constants.network_decay)
    return min(inner.bandwidth * constants.node_efficiency, port * members)


def collective(job: Job, size_bytes: float, size: int, stride: int, kind: Kind) -> float:
    """Seconds of a ring collective over `size_bytes` (the whole tensor): (n - 1)/n of them a rank, twice for an all-reduce."""
    if size == 1 or not size_bytes:
        return 0.0
    rounds = 2 if kind == "all_reduce" else 1
    latency = level_of(job, size, stride).latency * (size - 1) * rounds
    return rounds * size_bytes * (size - 1) / size / bandwidth(job, size, stride, kind) + latency


def message(job: Job, size_bytes: float, stride: int) -> float:
    """Seconds of a message to the device `stride` numbers away, while every device of the node sends as much."""
    link = level_of(job, 2, stride)
    efficiency = job.constants.network_efficiency if link.devices is None else job.constants.node_efficiency
    return size_bytes / (link.bandwidth * efficiency) + link.latency + job.constants.message_seconds
