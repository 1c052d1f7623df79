"""What the layout planner says of a run before it begins, and how far that was from what was measured."""

import logging
from dataclasses import replace
from typing import Any

from parallel.plan.forecast import forecast
from parallel.plan.memory import capacity_gib
from parallel.plan.native import machine_of
from train.config import Config
from train.config.resolve.microbatch import job_of, local_hardware

log = logging.getLogger("foretrain")


def announce(config: Config, device: str, peak_flops: float | None) -> dict[str, Any]:
    """Log the prediction, warn if the run will not fit, and return it for the record. `peak_flops`: of one rank, where
    measured."""
    machine = machine_of(device)
    if machine.name == "cpu":
        machine = local_hardware(config.parallel.layout.world_size, "cpu")
        if peak_flops is not None:
            machine = replace(machine, peak={**machine.peak, config.train.precision: peak_flops})
    said = forecast(job_of(config, machine))
    total, speed = said.memory_gib["total"], said.tokens_per_second_per_gpu * config.parallel.layout.world_size
    log.info(
        "predicted: %s a rank, %s tokens/s, a step of %.3g s (%s)",
        _size(total),
        f"{speed:,.0f}",
        said.step_seconds,
        machine.name,
    )
    if not said.fits:
        log.warning(
            "this run will probably not fit: %s of %s; lower train.microbatch (or =auto), raise parallel.shard or "
            "parallel.recompute=full; foretrain layout plan finds a layout",
            _size(total),
            _size(capacity_gib(said.job)),
        )
    return {
        "peak_memory_bytes": int(total * 2**30),
        "tokens_per_second": speed,
        "step_seconds": said.step_seconds,
        "fits": said.fits,
    }


def compare(predicted: dict[str, Any], peak_memory_bytes: int | None, tokens_per_second: float | None) -> None:
    """Log how far the prediction was off."""
    measured = {"memory": ("peak_memory_bytes", peak_memory_bytes), "speed": ("tokens_per_second", tokens_per_second)}
    words = [
        f"{name} {100 * (predicted[key] / value - 1):+.1f} %"
        for name, (key, value) in measured.items()
        if value and predicted.get(key)
    ]
    if words:
        log.info("the prediction against what was measured: %s", ", ".join(words))


def _size(gib: float) -> str:
    return f"{gib:,.2f} GiB" if gib >= 0.125 else f"{gib * 1024:,.1f} MiB"
