"""Gradients of replicas, summed in buckets while the backward pass still runs.

Source: Li et al., PyTorch Distributed, arXiv 2006.15704.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

BUCKET_BYTES = 25 * 2**20
"""As torch's DistributedDataParallel has it."""


class ReplicaSums:
    """Sums the gradients of parameters over the ranks of a group, all of which have the same parameters.

    In the backward pass after `begin`, a bucket is reduced as soon as its last gradient is there; the rest in `finish`.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], group: dist.ProcessGroup) -> None:
        self.group = group
        self._buckets: list[list[nn.Parameter]] = []
        self._missing: dict[int, int] = {}  # bucket -> gradients that the backward pass has not completed yet
        self._begun: dict[int, tuple[list[Tensor], Tensor, dist.Work]] = {}  # bucket -> (gradients, their sums, the reduction)
        size = BUCKET_BYTES
        for parameter in reversed(list(parameters)):  # about the order in which a backward pass completes them
            if size + _bytes(parameter) > BUCKET_BYTES:
                self._buckets.append([])
                size = 0
            self._buckets[-1].append(parameter)
            size += _bytes(parameter)
            bucket = len(self._buckets) - 1
            parameter.register_post_accumulate_grad_hook(lambda _, bucket=bucket: self._completed(bucket))

    def begin(self) -> None:
        """The next backward pass is the last before `finish`."""
        self._missing = {number: len(bucket) for number, bucket in enumerate(self._buckets)}

    def finish(self) -> None:
        """Put the sums into the gradients. A collective: all ranks have gradients of the same parameters."""
        self._missing = {}
        for number in range(len(self._buckets)):
            if number not in self._begun:
                self._reduce(number)
        for gradients, sums, work in self._begun.values():
            work.wait()
            parts = sums.split([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [part.view_as(it) for part, it in zip(parts, gradients, strict=True)])
        self._begun = {}

    def _completed(self, bucket: int) -> None:
        if bucket in self._missing:
            self._missing[bucket] -= 1
            if self._missing[bucket] == 0:
                self._reduce(bucket)

    def _reduce(self, bucket: int) -> None:
        gradients = [_local(parameter.grad) for parameter in self._buckets[bucket] if parameter.grad is not None]
        if not gradients:  # parameters that are not trained yet
            return
        sums = torch.cat([gradient.flatten() for gradient in gradients])
        work = dist.all_reduce(sums, group=self.group, async_op=True)
        assert work is not None
        self._begun[bucket] = gradients, sums, work


def _bytes(parameter: nn.Parameter) -> int:
    return _local(parameter).numel() * parameter.element_size()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
