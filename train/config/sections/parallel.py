"""How processes share a run."""

import dataclasses
from typing import Literal

from pydantic.dataclasses import dataclass

from parallel.context.names import Method, PartitionName
from parallel.layout import Layout
from parallel.names import EngineName, Recompute, ScheduleName
from train.config.sections.types import STRICT, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ParallelConfig:
    """The layout. The product of the five axes is the number of processes."""

    engine: EngineName
    """what carries out a step: PyTorch's own FSDP2"""
    replicate: PositiveInt
    """data-parallel replicas that each hold all shards (HSDP)"""
    shard: PositiveInt
    """data-parallel ranks that share parameters, gradients and optimizer state (FSDP2)"""
    tensor: PositiveInt
    """ranks that share each matrix product"""
    pipeline: PositiveInt
    """stages that share the layers"""
    context: PositiveInt
    """ranks that share each sequence"""
    context_method: Literal["auto", Method]
    """what those exchange: queries and results (token_ring), keys and values one way or both ways round (ring,
    ring_bidirectional), or heads for tokens (ulysses); auto: what a cost model expects to be fastest"""
    context_partition: PartitionName
    """which tokens of a sequence each of those holds. zigzag: one early and one late chunk, which all have equally much to do
    where a sequence is one document; balanced: eight chunks, chosen by what packed documents leave to do; contiguous"""
    context_topology: Literal["mesh", "switch"]
    """how those are connected, for auto. mesh: a link of its own between any two; switch: one port each"""
    pipeline_schedule: ScheduleName
    """order of the micro-batches in the pipeline; zbv and dualpipev hold two stages a rank, there and back"""
    virtual_stages: PositiveInt
    """stages a rank holds under the interleaved schedule"""
    recompute: Recompute
    """what a block's backward computes again: nothing, all but matrix products and attention, or everything"""

    @property
    def layout(self) -> Layout:
        """The five axes."""
        return Layout(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Layout)})
