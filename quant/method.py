"""The interface of all methods of low-precision training, for the model, the optimizer and the phases of a run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor.placement_types import Placement


class LowPrecisionModule(nn.Module):
    """A module that a method has put into a model. Until `active` is set, it computes exactly what the original module did."""

    active: bool

    def used_weight(self) -> Tensor:
        """The weight that the forward pass uses, in the compute dtype."""
        raise NotImplementedError

    def used_input(self, input: Tensor) -> Tensor:
        """The input that the forward pass uses."""
        return input


def replace_modules(model: nn.Module, replacement: Callable[[str, nn.Linear | nn.Embedding], nn.Module | None]) -> None:
    """Replace linears and embeddings of a model, in place, before it has values; those without a replacement stay."""
    plain = [(name, module) for name, module in model.named_modules() if type(module) in (nn.Linear, nn.Embedding)]
    for name, module in plain:
        assert isinstance(module, nn.Linear | nn.Embedding)
        if (new := replacement(name, module)) is not None:
            model.set_submodule(name, new)


def local_parameter(parameter: Tensor) -> Tensor:
    """This rank's part of one of a method's parameters.

    Its gradient is a partial sum over every axis on which the parameter is replicated: each rank contributes the terms of its
    own part of the weight and of its tokens.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    mesh = parameter.device_mesh
    placements: list[Placement] = [
        Partial() if isinstance(place, Replicate) and mesh.size(axis) > 1 else place
        for axis, place in enumerate(parameter.placements)
    ]
    return parameter.to_local(grad_placements=placements)


def like(local: Tensor, weight: Tensor) -> Tensor:
    """This rank's part of a tensor that is placed as `weight` is: a DTensor if `weight` is one."""
    if not isinstance(weight, DTensor):
        return local
    return DTensor.from_local(
        local, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride()
    )


@dataclass(frozen=True)
class Treatment:
    """How an optimizer treats a parameter that a method has added. It has no weight decay."""

    lr_scale: float
    """the parameter's learning rate is this times the schedule's"""
    eps: float
    """AdamW's epsilon"""
    penalty: float = 0.0
    """the objective has this times the mean of the parameter; the gradient of that is added after clipping"""
    bounds: tuple[float, float] | None = None
    """values that a step takes out of this range are put back to its border"""


class Method(ABC):
    """One way to train with low-precision weights.

    The full-precision weight stays an ordinary parameter. A method may learn further parameters of its own, which are not
    trained before the low-precision phase of a run; one that has none leaves the questions about them as they are here.
    """

    @property
    @abstractmethod
    def description(self) -> str:
        """The method's name in a run record."""

    @abstractmethod
    def convert(self, model: nn.Module) -> Collection[str]:
        """Put low-precision modules into a model, in place, before it has values. Returns the names of the method's parameters,
        which are replicated over data-parallel ranks."""

    @abstractmethod
    def modules(self, model: nn.Module) -> Iterator[tuple[str, LowPrecisionModule]]:
        """The modules that `convert` has put into a model, by name."""

    def prepare_step(self, modules: Iterable[tuple[str, LowPrecisionModule]], *, seed: int, step: int) -> None:
        """The optimizer step number `step` of a run begins. What depends on it goes into tensors of the modules, so that
        compiled code is not compiled again."""
        return

    def owns(self, parameter: str) -> bool:
        """Whether the parameter of that name belongs to the method."""
        return False

    def tied(self, embedding: str) -> Collection[str]:
        """The names of the method's parameters of an embedding that is also the head."""
        return ()

    def weight_of(self, parameter: str) -> str:
        """The name of the weight that one of the method's parameters belongs to."""
        raise NotImplementedError

    def treatment(self, parameter: str, weight_lr_scale: float) -> Treatment:
        """How the optimizer treats one of the method's parameters, whose weight has the learning rate `weight_lr_scale`."""
        raise NotImplementedError

    def first_value(self, parameter: str, weight: Tensor) -> Tensor:
        """The initial value of one of the method's parameters in the phase, from its whole weight in the compute dtype."""
        raise NotImplementedError

    def bit_widths(self, value: Tensor) -> Tensor:
        """The bit widths that one of the method's parameters stands for, where a method learns them; else none."""
        return value.new_empty(0)
