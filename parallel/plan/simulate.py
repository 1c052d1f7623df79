"""From a node to internet scale: the best layout at every number of devices, with failures and checkpoints counted in.

Failures: the mean time between them is a device's divided by the number of devices. A checkpoint costs `checkpoint_seconds`,
and after a failure on average half an interval is done again, besides the restart; the interval is the one that costs least,
sqrt(2 x cost x time between failures) (Young, 1974).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.errors import UserError
from parallel.plan.forecast import Forecast
from parallel.plan.job import Job
from parallel.plan.search import search

COUNTS = (8, 64, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 98304)
DEVICE_HOURS_PER_FAILURE = 50_000.0
"""Llama 3: 419 unexpected interruptions in 54 days of 16,384 H100 (arXiv 2407.21783, section 3.3.4): one in 50,700
device-hours."""
CHECKPOINT_SECONDS = 10.0
"""A training step stops that long: copies to host memory, written in the background."""
RESTART_SECONDS = 600.0
"""From a failure to the first new step: notice, replace, load, compile."""


@dataclass(frozen=True)
class Point:
    """A number of devices on a curve."""

    forecast: Forecast
    failures_per_day: float
    useful: float
    """share of the time that ends in steps that count"""
    days: float
    device_hours: float
    energy_mwh: float | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "gpus": self.forecast.job.choice.gpus,
            "layout": self.forecast.as_json()["layout"],
            "memory_gib": self.forecast.memory_gib["total"],
            "step_seconds": self.forecast.step_seconds,
            "mfu": self.forecast.mfu,
            "failures_per_day": self.failures_per_day,
            "useful": self.useful,
            "days": self.days,
            "device_hours": self.device_hours,
            "energy_mwh": self.energy_mwh,
        }


def useful_share(devices: int) -> float:
    """Share of the time that ends in steps that count."""
    between = DEVICE_HOURS_PER_FAILURE * 3600 / devices
    interval = math.sqrt(2 * CHECKPOINT_SECONDS * between)
    lost = CHECKPOINT_SECONDS / interval + (interval / 2 + RESTART_SECONDS) / between
    return max(0.0, 1 - lost)


def curve(job: Job, tokens: float, counts: Sequence[int] = COUNTS) -> list[Point]:
    """The best layout at every number of devices that has one that fits, for a run of `tokens` tokens.

    Raises:
        UserError: none has.
    """
    points = []
    for count in counts:
        try:
            best = search(job, count, {}, 1)[0]
        except UserError:
            continue
        if not best.fits:
            continue
        useful = useful_share(count)
        seconds = tokens / (best.tokens_per_second_per_gpu * count) / max(useful, 1e-6)
        hours = seconds * count / 3600
        watts = job.hardware.watts
        points.append(
            Point(
                best,
                24 * count / DEVICE_HOURS_PER_FAILURE,
                useful,
                seconds / 86400,
                hours,
                hours * watts / 1e6 if watts else None,
            )
        )
    if not points:
        raise UserError(
            f"no number of devices up to {max(counts):,} has a layout that fits; take a larger batch or more memory"
        )
    return points


def at_batch(job: Job, sequences: int) -> Job:
    """The job with another batch."""
    return replace(job, batch_sequences=sequences)
