"""How fast a run is, against what its devices could do."""

from collections import deque

import torch
import torch.distributed as dist

from parallel.plan.hardware import dense_peak
from train.build.model import COMPUTE_DTYPES

WARMUP_STEPS = 2  # left out of the speed: first allocations, compilation and the memory tracker fall into them
REMEMBERED_STEPS = 10_000  # a run of millions of steps must not remember them all


class Throughput:
    """Speed and peak of all ranks together. Every rank has one."""

    def __init__(self, device: torch.device, precision: str) -> None:
        """A collective."""
        self.longest_step_seconds = 0.0
        """0 before the first step"""
        self._device, self._dtype = device, COMPUTE_DTYPES[precision]
        self._peak_flops: float | None = None
        self._first: list[float] = []
        self._speeds: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        self.measure_peak()

    def add(self, tokens: int, seconds: float) -> float:
        """Take note of a step. Returns its tokens per second."""
        self.longest_step_seconds = max(self.longest_step_seconds, seconds)
        speed = tokens / seconds
        (self._first if len(self._first) < WARMUP_STEPS else self._speeds).append(speed)
        return speed

    @property
    def tokens_per_second(self) -> float | None:
        """The median step of the last `REMEMBERED_STEPS`, without the first ones; None before the first step."""
        measured = sorted(self._speeds or self._first)
        return measured[(len(measured) - 1) // 2] if measured else None

    def mfu(self, flops_per_token: float) -> float | None:
        """Share of the devices' dense peak that steps use; None where the peak is not known."""
        speed = self.tokens_per_second
        return None if speed is None or self._peak_flops is None else speed * flops_per_token / self._peak_flops

    def measure_peak(self) -> None:
        """Dense peak FLOP/s of all ranks' devices together. A collective.

        A CPU's is measured, and may be disturbed by other work: the largest measurement counts.
        """
        peak = torch.tensor(dense_peak(self._device, self._dtype) or float("nan"), dtype=torch.float64)
        dist.all_reduce(peak)
        self._peak_flops = None if peak.isnan() else max(float(peak), self._peak_flops or 0.0)
