"""One question to the planner: a model, a batch, a machine, a framework's recipe and a layout. Standard library only."""

from dataclasses import dataclass, field, fields
from typing import Any

from parallel.names import Recompute, ScheduleName
from parallel.plan.hardware import Hardware
from parallel.plan.recipe import Constants, Recipe
from parallel.shape import ModelShape

BYTES = {"bf16": 2, "fp16": 2, "fp8": 2, "fp32": 4, "fp64": 8}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A layout: what a user writes as `tensor=8,pipeline=8,...`. Names as in the configuration."""

    replicate: int = 1
    shard: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    microbatch: int = 1
    recompute: Recompute = "none"
    pipeline_schedule: ScheduleName = "1f1b"
    virtual_stages: int = 1
    zero: int = 0
    """0: states whole on every data rank; 1, 2, 3: optimizer, gradients, weights divided over `shard`"""
    sequence_parallel: bool = True

    @property
    def gpus(self) -> int:
        """Devices."""
        return self.replicate * self.shard * self.tensor * self.pipeline * self.context

    @property
    def data_parallel(self) -> int:
        """Ranks that read different samples."""
        return self.replicate * self.shard

    def words(self) -> str:
        """As a user writes it, without what is 1 or off."""
        axes = [f"{name}={getattr(self, name)}" for name in AXES if getattr(self, name) > 1]
        rest = [f"microbatch={self.microbatch}", f"recompute={self.recompute}"]
        if self.pipeline > 1:
            rest.append(f"pipeline_schedule={self.pipeline_schedule}")
        if self.virtual_stages > 1:
            rest.append(f"virtual_stages={self.virtual_stages}")
        if self.zero:
            rest.append(f"zero={self.zero}")
        return ",".join([*axes, *rest])


AXES = ("replicate", "shard", "tensor", "pipeline", "context")
CHOICE_KEYS = tuple(entry.name for entry in fields(Choice))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a benchmark of the very allocation found, where a row states it: bytes/s of collectives over all of its devices."""

    all_reduce: float | None = None
    all_gather: float | None = None
    reduce_scatter: float | None = None
    fabric: str | None = None
    """state of the node's links, a key of a recipe's `fabrics`"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run to forecast."""

    shape: ModelShape
    sequence: int
    batch_sequences: int
    hardware: Hardware
    recipe: Recipe
    choice: Choice
    precision: str = "bf16"
    measured: Measured = field(default_factory=Measured)
    constants: Constants = field(default_factory=Constants)
    quantized_bytes: float = 0.0
    """extra bytes per parameter of a low-precision method"""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def microbatches(self) -> int:
        """Micro-batches a step of every data rank, at least 1."""
        return max(1, self.batch_sequences // (self.choice.data_parallel * self.choice.microbatch))

    @property
    def tokens(self) -> float:
        """Tokens of a micro-batch on a rank."""
        return self.choice.microbatch * self.sequence / self.choice.context

    @property
    def element_bytes(self) -> int:
        """Bytes of an activation element."""
        return BYTES[self.precision]
