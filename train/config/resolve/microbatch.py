"""`train.microbatch=auto`: the fastest micro-batch that fits, as the planner predicts it. Imports no torch."""

import math
from dataclasses import asdict, replace
from pathlib import Path

from parallel.plan.hardware import HOST_SHARE, Hardware, hardware_of, host_memory, load_hardware
from parallel.plan.job import Job
from parallel.plan.memory import capacity_gib, memory
from parallel.plan.native import job_of_run, with_microbatch
from parallel.plan.search import problem
from parallel.plan.step_time import step_parts
from train.config.schema import Config

LARGEST = 64


def job_of(config: Config, hardware: Hardware) -> Job:
    """A configuration as a job of the planner."""
    train, low_precision = config.train, config.low_precision
    return job_of_run(
        shape=config.model.shape,
        sequence=train.sequence,
        batch_sequences=max(1, train.batch_tokens // train.sequence),
        parallel=asdict(config.parallel),
        microbatch=train.microbatch,
        precision=train.precision,
        hardware=hardware,
        quant=None if low_precision is None else {"rounds": True},
    )


def local_hardware(ranks: int) -> Hardware:
    """The machine this process sees, by what the driver says; on a CPU, `ranks` processes share its memory."""
    for entry in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = entry.read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")]
        if names and (found := hardware_of(names[0])) is not None:
            return found
    return replace(load_hardware("cpu"), memory_gib=HOST_SHARE * host_memory() / 2**30 / ranks)


def fastest_microbatch(config: Config) -> tuple[int, str]:
    """The micro-batch with the shortest predicted step among those that fit and divide the batch, and why in a line; 1 if none
    fits."""
    train, layout = config.train, config.parallel.layout
    machine = local_hardware(layout.world_size)
    job = job_of(config, machine)
    smallest = math.gcd(train.batch_tokens, train.batch_warmup_start or train.batch_tokens)
    rows = smallest // (train.sequence * layout.data_parallel)
    options = [with_microbatch(job, count) for count in range(1, min(rows, LARGEST) + 1) if rows % count == 0]
    possible = [option for option in options if problem(option) is None]
    fitting = [option for option in possible if memory(option)["total"] / 2**30 <= capacity_gib(option)]
    if not fitting:
        return 1, f"no micro-batch is predicted to fit {capacity_gib(job):.1f} GiB of {machine.name}"
    best = min(fitting, key=lambda option: step_parts(option)["total"])
    gib = memory(best)["total"] / 2**30
    return best.choice.microbatch, f"{gib:.2f} of {capacity_gib(job):.1f} GiB of {machine.name}, predicted"
