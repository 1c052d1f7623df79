"""The fastest micro-batch and recomputation that fit, as the planner predicts them. Imports no torch."""

import math
from dataclasses import asdict, replace

from parallel.engine.names import DEFAULT
from parallel.names import V_SHAPED, DeviceName, Recompute
from parallel.plan.hardware import HOST_SHARE, Hardware, hardware_of, host_memory, load_hardware
from parallel.plan.job import Job
from parallel.plan.memory import capacity_gib, memory
from parallel.plan.native import job_of_run
from parallel.plan.search import LEVELS, problem
from parallel.plan.step_time import step_parts
from train.config.resolve.gpus import gpu_names
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


def local_hardware(ranks: int, device: DeviceName = "auto") -> Hardware:
    """The machine this process sees, by what the driver says; on a CPU, `ranks` processes share its memory."""
    for name in gpu_names(device):
        if (found := hardware_of(name)) is not None:
            return found
    return replace(load_hardware("cpu"), memory_gib=HOST_SHARE * host_memory() / 2**30 / ranks)


def fastest(config: Config, *, choose_microbatch: bool, choose_recompute: bool) -> tuple[int, Recompute, str]:
    """(micro-batch, recomputation, why in a line): those with the shortest predicted step among those that fit and divide the
    batch. If none fits, those that take the least memory.

    What is not to be chosen stays as the configuration has it.
    """
    train, layout = config.train, config.parallel.layout
    machine = local_hardware(layout.world_size, train.device)
    job = job_of(config, machine)
    smallest = math.gcd(train.batch_tokens, train.batch_warmup_start or train.batch_tokens)
    rows = smallest // (train.sequence * layout.data_parallel)
    counts = [count for count in range(1, min(rows, LARGEST) + 1) if rows % count == 0]
    if not choose_microbatch:
        counts = [train.microbatch]
    levels = LEVELS if choose_recompute else (config.parallel.recompute,)
    if choose_recompute and (config.parallel.engine != DEFAULT or config.parallel.pipeline_schedule in V_SHAPED):
        levels = ("none", "full")  # what all of these can
    options = [
        replace(job, choice=replace(job.choice, microbatch=count, recompute=level)) for level in levels for count in counts
    ]
    possible = [option for option in options if problem(option) is None]
    fitting = [option for option in possible if _gib(option) <= capacity_gib(option)]
    if not fitting:
        least = counts[0] if counts else 1
        return least, levels[-1], f"nothing is predicted to fit {capacity_gib(job):.1f} GiB of {machine.name}"
    best = min(fitting, key=lambda option: step_parts(option)["total"]).choice
    chosen = replace(job, choice=best)
    why = f"the fastest of what fits, {_gib(chosen):.2f} of {capacity_gib(job):.1f} GiB of {machine.name}, predicted"
    return best.microbatch, best.recompute, why


def _gib(job: Job) -> float:
    return memory(job)["total"] / 2**30
