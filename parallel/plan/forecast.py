"""A job's forecast: memory by part, whether it fits, seconds by part, speed, and why it is no faster."""

from dataclasses import dataclass
from typing import Any

from parallel.plan.job import CHOICE_KEYS, Job
from parallel.plan.links import leaves_node
from parallel.plan.memory import GIB, PARTS, capacity_gib, memory
from parallel.plan.step_time import step_parts


@dataclass(frozen=True)
class Forecast:
    """What the planner says of a job."""

    job: Job
    memory_gib: dict[str, float]
    """of the pipeline rank that needs most, by part, and `total`"""
    seconds: dict[str, float]
    """of a step, by part, and `total`"""

    @property
    def fits(self) -> bool:
        """Whether the fullest rank has room."""
        return self.memory_gib["total"] <= capacity_gib(self.job)

    @property
    def step_seconds(self) -> float:
        """Seconds of a step."""
        return self.seconds["total"]

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """Tokens/s of a device."""
        return self.job.batch_sequences * self.job.sequence / self.step_seconds / self.job.choice.gpus

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation, a fraction of the dense bf16 peak (fp32's for fp32)."""
        precision = "bf16" if self.job.precision == "fp8" else self.job.precision
        flops = self.job.shape.flops_per_token(self.job.sequence)
        return self.tokens_per_second_per_gpu * flops / self.job.hardware.flops(precision)

    @property
    def bubble_fraction(self) -> float:
        """Share of a step in which the slowest pipeline rank waits for others."""
        return self.seconds["bubble"] / self.step_seconds

    def reasons(self) -> list[str]:
        """Why a step is no faster, the largest share first, each in a few words."""
        choice, total = self.job.choice, self.step_seconds
        said = {
            "bubble": f"pipeline {choice.pipeline} loses {{}} to bubbles ({self.job.microbatches} micro-batches)",
            "tensor": f"tensor {choice.tensor} sends for {{}}",
            "recompute": f"recompute={choice.recompute} costs {{}}",
            "reduction": "the gradients' reduction shows for {}",
            "gather": "gathering divided weights shows for {}",
            "host": "the host launches too slowly for {}",
            "context": f"context {choice.context} sends for {{}}",
            "messages": "messages between stages take {}",
            "optimizer": "the optimizer takes {}",
            "head": "the output head takes {}",
        }
        shares = sorted(((self.seconds.get(part, 0.0) / total, part) for part in said), reverse=True)
        words = [said[part].format(f"{100 * share:.0f} %") for share, part in shares[:3] if share >= 0.03]
        if leaves_node(self.job, choice.tensor, 1):
            words.insert(0, f"tensor {choice.tensor} leaves the node of {self.job.hardware.node_devices}")
        spare = capacity_gib(self.job) - self.memory_gib["total"]
        words.append(f"{spare:.1f} GiB to spare" if spare >= 0 else f"{-spare:.1f} GiB too much")
        return words

    def as_json(self) -> dict[str, Any]:
        """The object of a candidate in `layout plan --json`."""
        choice = self.job.choice
        return {
            "layout": {key: getattr(choice, key) for key in CHOICE_KEYS},
            "fits": self.fits,
            "memory_gib": {part: self.memory_gib[part] for part in (*PARTS, "total")},
            "step_seconds": self.step_seconds,
            "tokens_per_second_per_gpu": self.tokens_per_second_per_gpu,
            "mfu": self.mfu,
            "bubble_fraction": self.bubble_fraction,
            "microbatch": choice.microbatch,
            "recompute": choice.recompute,
            "seconds": self.seconds,
            "reasons": self.reasons(),
        }


def forecast(job: Job) -> Forecast:
    """The forecast of a job."""
    return Forecast(job, memory_in_gib(job), step_parts(job))


def memory_in_gib(job: Job) -> dict[str, float]:
    """`memory` in GiB."""
    return {part: size / GIB for part, size in memory(job).items()}
