"""What every method of low-precision training has: one face for the model, the optimizer and the phases of a run."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import Tensor, nn


class LowPrecisionModule(nn.Module):
    """A module that a method has put into a model. Until `active` is set it computes as the module it replaced, bit for bit."""

    active: bool


@dataclass(frozen=True)
class Treatment:
    """How an optimizer treats a parameter that a method has added. It has no weight decay."""

    lr_scale: float
    """times the schedule's learning rate"""
    eps: float
    """AdamW's epsilon"""


class Method(ABC):
    """One way to train with low-precision weights.

    The full-precision weight stays an ordinary parameter. What a method learns besides is parameters of its own, which take
    no part in a run before its low-precision phase.
    """

    @property
    @abstractmethod
    def description(self) -> str:
        """What a run record calls it."""

    @abstractmethod
    def convert(self, model: nn.Module) -> Collection[str]:
        """Put low-precision modules into a model, in place, before it has values. Returns the names of the method's parameters,
        which every data-parallel rank holds whole."""

    @abstractmethod
    def owns(self, parameter: str) -> bool:
        """Whether a parameter of that name is the method's own."""

    @abstractmethod
    def modules(self, model: nn.Module) -> Iterator[tuple[str, LowPrecisionModule]]:
        """The modules that `convert` has put into a model, by name."""

    @abstractmethod
    def weight_of(self, parameter: str) -> str:
        """The name of the weight that one of the method's parameters belongs to."""

    @abstractmethod
    def tied(self, embedding: str) -> Collection[str]:
        """The method's parameters of an embedding that is the head too."""

    @abstractmethod
    def treatment(self, parameter: str, weight_lr_scale: float) -> Treatment:
        """How the optimizer treats one of the method's parameters, whose weight has the learning rate `weight_lr_scale`."""

    @abstractmethod
    def first_value(self, parameter: str, weight: Tensor) -> Tensor:
        """What one of the method's parameters begins the phase with, from its whole weight in the compute dtype."""
