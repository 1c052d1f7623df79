"""What an engine is asked to carry out, and what several engines must ask about it. Standard library only."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from parallel.engine.names import Offload
from parallel.layout import Layout
from parallel.names import Recompute, ScheduleName
from parallel.shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class Request:
    """A run as an engine sees it. Names as in the configuration."""

    here: bool
    """whether it is to be carried out on this machine, and not only looked at"""
    layout: Layout
    shape: ModelShape
    pipeline_schedule: ScheduleName
    virtual_stages: int
    recompute: Recompute
    zero_stage: int | None
    offload: Offload
    fused_optimizer: bool
    precision: str
    compile: bool
    z_loss: float
    optimizer: str
    mup: bool
    scaled_rope: bool
    """whether low frequencies of the rotary embedding are scaled"""
    quant: str
    rounds_inputs: bool
    """whether low precision also rounds the inputs of matrix products"""
    growing_batch: bool
    accumulation: int
    """micro-batches a step"""


def library(engine: str, distribution: str, oldest: tuple[int, int], request: Request) -> Iterator[str]:
    """A line if an engine's library is missing or too old. It is found by its metadata, without an import."""
    if not request.here:
        return
    install = f"type pip install '.[{engine}]' in Foretrain's folder"
    try:
        found = version(distribution)
    except PackageNotFoundError:
        yield f"parallel.engine={engine} needs {distribution}, which is not installed: {install}, or parallel.engine=native"
        return
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < oldest:
        yield (f"parallel.engine={engine} needs {distribution} {oldest[0]}.{oldest[1]} or newer, this is {found}: {install}")


def axes_of_one(engine: str, request: Request, reasons: dict[str, str]) -> Iterator[str]:
    """A line for every axis in `reasons` that is larger than 1."""
    for axis, reason in reasons.items():
        if (size := getattr(request.layout, axis)) > 1:
            yield f"parallel.{axis}={size}: parallel.engine={engine} {reason}"
