"""The sizes of the five mesh axes. Standard library only."""

import math
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a run's processes divide the work: one size per mesh axis."""

    replicate: int = 1
    shard: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1

    @property
    def world_size(self) -> int:
        """Processes the layout needs: the product of its axes."""
        return math.prod(asdict(self).values())

    @property
    def data_parallel(self) -> int:
        """Number of ranks that read different samples: replicate x shard."""
        return self.replicate * self.shard

    def __str__(self) -> str:
        return " x ".join(f"{axis} {size}" for axis, size in asdict(self).items() if size > 1) or "single process"
