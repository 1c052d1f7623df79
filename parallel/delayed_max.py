"""What any rank has noticed, known to all of them at the same point of the program."""

import torch
import torch.distributed as dist


class DelayedMax:
    """Numbers exchanged at every step without anybody waiting: what was said at one exchange is known at the next.

    Every rank must make the same exchanges. The reduction runs on a gloo group of its own, beside the step's computation.
    """

    def __init__(self, size: int) -> None:
        """A collective of all `size` ranks of the default group."""
        self._group = dist.new_group(backend="gloo") if size > 1 else None
        self._said = torch.zeros((), dtype=torch.int64)
        self._work: dist.Work | None = None

    def exchange(self, value: int) -> int:
        """Say `value`; returns the largest value of all ranks at the exchange before this one (0 at the first).

        A single rank is its own majority: it is told its own value at once.
        """
        if self._group is None:
            return value
        if self._work is not None:
            self._work.wait()
        largest = int(self._said)
        self._said = torch.tensor(value, dtype=torch.int64)
        self._work = dist.all_reduce(self._said, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return largest
