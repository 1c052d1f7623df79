"""The layout: how processes share a run."""

import dataclasses
from typing import Literal

from pydantic.dataclasses import dataclass

from parallel.context.names import Method, PartitionName
from parallel.engine.names import EngineName, Offload
from parallel.layout import Layout
from parallel.names import Recompute, ScheduleName
from train.config.sections.types import STRICT, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ParallelConfig:
    """The layout. The product of the five axes is the number of processes."""

    engine: EngineName
    """backend that runs a step; each but the default needs the extra of its name"""
    zero_stage: Literal[1, 2, 3] | None
    """what an engine with ZeRO divides over data ranks: optimizer state (1), also gradients (2), also parameters (3)"""
    offload: Offload
    """what such an engine keeps in the host's memory: none, optimizer, or parameters (and the optimizer's state)"""
    fused_optimizer: bool
    """the engine's own fused AdamW in place of torch's; the first start compiles it"""
    replicate: PositiveInt
    """data-parallel replicas of all shards (HSDP)"""
    shard: PositiveInt
    """data-parallel ranks that share parameters, gradients and optimizer state (FSDP2)"""
    tensor: PositiveInt
    """ranks that share each matrix product"""
    pipeline: PositiveInt
    """ranks that share the layers"""
    context: PositiveInt
    """ranks that share each sequence"""
    context_method: Literal["auto", Method]
    """what context ranks exchange: queries and results (token_ring), keys and values in one direction or both (ring,
    ring_bidirectional), or heads for tokens (ulysses); auto: the method that a cost model expects to be fastest"""
    context_partition: PartitionName
    """which tokens of a sequence each context rank has. zigzag: one early and one late chunk, equal work for all if a sequence
    is one document; balanced: eight chunks, chosen for equal work with packed documents; contiguous: one chunk"""
    context_topology: Literal["mesh", "switch"]
    """how context ranks are connected, for auto. mesh: a link between any two; switch: one port per rank"""
    pipeline_schedule: ScheduleName
    """order of the micro-batches in the pipeline; zbv and dualpipev have two stages per rank, in a V"""
    virtual_stages: PositiveInt
    """stages per rank under the interleaved schedule"""
    recompute: Recompute
    """what a block's backward pass recomputes: none, selective (all but matrix products and attention), or full;
    auto: what is fastest of what fits, as the planner predicts it"""

    oversubscribe: bool
    """foretrain starts more processes than this machine has cores or devices, or more than its memory holds"""

    @property
    def layout(self) -> Layout:
        """The five axes."""
        return Layout(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Layout)})
