"""What the training loop asks of an engine."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor, nn

Batch = TypeVar("Batch", contravariant=True)

ForwardLoss = Callable[[nn.Module, Batch], tuple[Tensor, Tensor, Tensor]]
"""(model, batch) -> (objective, cross entropy, number of targets): scalars summed over the batch.

Only the objective has a gradient."""


@dataclass(frozen=True)
class StepResult:
    """Scalars of one optimizer step, equal on all ranks, still on the device: reading one waits for the step."""

    loss: Tensor
    """cross entropy, nats per token, over the global batch, before the update"""
    gradient_norm: Tensor
    """l2 norm of the whole gradient before clipping"""


class Engine(Protocol[Batch]):
    """Owns the model and the optimizer of one rank."""

    def train_step(self, batches: Sequence[Batch], *, learning_rate: float, tokens: int) -> StepResult:
        """One optimizer step over this rank's micro-batches. `tokens` is the global batch's number of targets."""
        ...

    def evaluate(self, batches: Iterable[Batch]) -> float:
        """Mean cross entropy in nats per target over all ranks' batches. Every rank must bring equally many."""
        ...

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, whole tensor on the CPU) one by one, on every rank in the same order. A collective."""
        ...
