"""A maximum over all ranks that no rank waits for."""

import torch
import torch.distributed as dist


class DelayedMax:
    """The maximum over ranks of the values at the previous exchange: all ranks learn it at the same point of the program.

    All ranks must make the same exchanges. The reduction runs on its own gloo group, while the step computes.
    """

    def __init__(self, size: int) -> None:
        """A collective over all `size` ranks of the default group."""
        self._group = dist.new_group(backend="gloo") if size > 1 else None
        self._value = torch.zeros((), dtype=torch.int64)
        self._work: dist.Work | None = None

    def exchange(self, value: int) -> int:
        """Contribute `value`. Returns the largest value of all ranks at the previous exchange (0 at the first).

        A single rank gets its own value back at once.
        """
        if self._group is None:
            return value
        if self._work is not None:
            self._work.wait()
        largest = int(self._value)
        self._value = torch.tensor(value, dtype=torch.int64)
        self._work = dist.all_reduce(self._value, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return largest
