"""Runs on a layout, compared with a reference: what the parity tests of all low-precision methods share."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.support import whole_runs
from tests.support.group import Group
from train.config import load_config

Losses = Sequence[tuple[float, float]]
"""(loss, gradient norm) of every step"""


@dataclass(frozen=True)
class Run:
    """What is computed, what comes out by the reference, and how near the layouts must come."""

    words: list[str]
    expected: Losses
    tolerance: float


def assert_equal(
    group: Callable[[int], Group], folder: Path, layout: Mapping[str, int | str], runs: Sequence[Run], *how: str
) -> None:
    """Carry the runs out on a layout, one after the other; losses and gradient norms are the reference's.

    Sixteen sequences a step, in four micro-batches where there is a pipeline. `how`: overrides that must make no difference.
    """
    sizes = {axis: size for axis, size in layout.items() if isinstance(size, int)}
    rows = 16 // (sizes.get("replicate", 1) * sizes.get("shard", 1)) // (4 if "pipeline" in sizes else 1)
    axes = [f"parallel.{axis}={value}" for axis, value in layout.items()]
    configs = [
        load_config([f"run.dir={folder}/{number}", *run.words, *axes, f"train.microbatch={rows}", *how])
        for number, run in enumerate(runs)
    ]
    answers = group(math.prod(sizes.values())).run(whole_runs.train, configs, timeout=300.0)
    (found,) = [answer for answer in answers if answer is not None]
    for losses, run in zip(found, runs, strict=True):
        np.testing.assert_allclose(losses, run.expected, rtol=run.tolerance, atol=0, err_msg=" ".join(run.words))
