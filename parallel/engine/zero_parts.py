"""Which elements of which parameters a rank has in the flat fp32 buffers of DeepSpeed's ZeRO optimizers.

Stages 1 and 2 concatenate the parameters of a group and divide the result over the data ranks; stage 3 divides every parameter
by itself. Either way a rank has consecutive elements of a parameter, in row-major order.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parallel.compose import Fill
from parallel.rectangles import Rectangles, consecutive


@dataclass(frozen=True)
class Piece:
    """A rank's elements of one parameter: `count` from `start` on, at `offset` of the flat buffer `master`."""

    name: str
    shape: tuple[int, ...]
    start: int
    count: int
    master: Tensor
    offset: int

    def flat(self, buffer: Tensor) -> Tensor:
        """The elements in a buffer that is laid out as `master` is: the weights themselves, or a moment."""
        return buffer.detach()[self.offset : self.offset + self.count]

    def part(self, buffer: Tensor) -> Rectangles:
        """The same as a part of the whole parameter."""
        return Rectangles(self.shape, list(consecutive(self.flat(buffer), self.shape, self.start)))

    def fill(self, fill: Fill) -> None:
        """Set the weights."""
        for offset, view in self.part(self.master).parts:
            fill(self.name, view, offset, self.shape)


def pieces(zero: Any, named_parameters: Iterable[tuple[str, nn.Parameter]], rank: int) -> Iterator[Piece]:
    """The pieces that this rank, the `rank`-th of the data ranks, has of a ZeRO optimizer."""
    find = _of_parameter if _divides_parameters(zero) else _of_group
    for name, parameter in named_parameters:
        found = find(zero, name, parameter, rank)
        if found is not None:
            yield found


def _of_group(zero: Any, name: str, parameter: Any, rank: int) -> Piece | None:
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
    master = masters(zero)[mapping.param_group_index]
    return Piece(name, tuple(parameter.shape), here.start, here.numel, master, there.start)


def _of_parameter(zero: Any, name: str, parameter: Any, rank: int) -> Piece | None:
    group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
    start = rank * size
    count = min(size, parameter.ds_numel - start)  # the last part is padded
    if count <= 0:
        return None
    return Piece(name, tuple(parameter.ds_shape), start, count, masters(zero)[group], offset)


@torch.no_grad()
def publish(zero: Any) -> None:
    """Give the model the values of the fp32 buffers. A collective."""
    if not _divides_parameters(zero):
        zero.update_lp_params()
        return
    for group in range(len(zero.fp16_groups)):
        zero._reassign_or_swap_out_partitioned_parameters(group)
    if zero.persistent_parameters:
        zero.persistent_parameters[0].partition(zero.persistent_parameters)
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def masters(zero: Any) -> list[Tensor]:
    """The flat fp32 buffers, one for each (sub-)group."""
    # Of stage 3; of stages 1 and 2; of stage 1 with weights in bf16 and gradients in fp32, which is a class of its own.
    kinds = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
    return list(next(getattr(zero, kind) for kind in kinds if hasattr(zero, kind)))


def _divides_parameters(zero: Any) -> bool:
    return hasattr(zero, "fp32_partitioned_groups_flat")


def create_state(zero: Any) -> None:
    """Take a step of the optimizer under ZeRO with zero gradients at learning rate 0, after which its state is there."""
    for group in zero.optimizer.param_groups:
        group["lr"] = 0.0
    before = [master.grad for master in masters(zero)]
    for number, master in enumerate(masters(zero)):
        master.grad = torch.zeros_like(master)
        if _divides_parameters(zero):  # only then are the buffers among the optimizer's parameters
            zero._optimizer_step(number)
    if not _divides_parameters(zero):
        zero.optimizer.step()
    for master, gradient in zip(masters(zero), before, strict=True):
        master.grad = gradient
