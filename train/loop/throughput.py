"""The speed of a run, absolute and relative to the peak of its devices."""

from collections import deque

import torch
import torch.distributed as dist

from parallel.plan.hardware import dense_peak
from train.build.model import COMPUTE_DTYPES

WARMUP_STEPS = 2  # not counted in the speed, because of first allocations, compilation and the memory tracker
REMEMBERED_STEPS = 10_000  # bounds the memory of a run of millions of steps


class Throughput:
    """Speed and peak FLOP/s of all ranks together. Every rank has one."""

    def __init__(self, device: torch.device, precision: str) -> None:
        """Measure the peak. A collective."""
        self.longest_step_seconds = 0.0
        """duration of the longest step so far; 0 before the first step"""
        self._device, self._dtype = device, COMPUTE_DTYPES[precision]
        self._peak_flops: float | None = None
        self._first: list[float] = []
        self._speeds: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        self.measure_peak()

    def add(self, tokens: int, seconds: float) -> float:
        """Record a step. Returns its tokens per second."""
        self.longest_step_seconds = max(self.longest_step_seconds, seconds)
        speed = tokens / seconds
        (self._first if len(self._first) < WARMUP_STEPS else self._speeds).append(speed)
        return speed

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the last `REMEMBERED_STEPS` steps, without the warmup steps if there are others; None before any step."""
        measured = sorted(self._speeds or self._first)
        return measured[(len(measured) - 1) // 2] if measured else None

    def mfu(self, flops_per_token: float) -> float | None:
        """Model FLOPs utilisation: share of the devices' dense peak that steps use; None if peak or speed is unknown."""
        speed = self.tokens_per_second
        return None if speed is None or self._peak_flops is None else speed * flops_per_token / self._peak_flops

    def peak_flops_per_rank(self, ranks: int) -> float | None:
        """Dense peak FLOP/s of a rank's device; None if it is not known."""
        return None if self._peak_flops is None else self._peak_flops / ranks

    def measure_peak(self) -> None:
        """Determine the dense peak FLOP/s of all ranks' devices together. A collective.

        On a CPU it is measured, which other processes may disturb: the largest measurement counts.
        """
        peak = torch.tensor(dense_peak(self._device, self._dtype) or float("nan"), dtype=torch.float64)
        dist.all_reduce(peak)
        self._peak_flops = None if peak.isnan() else max(float(peak), self._peak_flops or 0.0)
