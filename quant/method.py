"""The interface of all methods of low-precision training, for the model, the optimizer and the phases of a run."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import Tensor, nn


class LowPrecisionModule(nn.Module):
    """A module that a method has put into a model. Until `active` is set, it computes exactly what the original module did."""

    active: bool

    def used_weight(self) -> Tensor:
        """The weight that the forward pass uses, in the compute dtype."""
        raise NotImplementedError

    def used_input(self, input: Tensor) -> Tensor:
        """The input that the forward pass uses."""
        return input


@dataclass(frozen=True)
class Treatment:
    """How an optimizer treats a parameter that a method has added. It has no weight decay."""

    lr_scale: float
    """the parameter's learning rate is this times the schedule's"""
    eps: float
    """AdamW's epsilon"""


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
