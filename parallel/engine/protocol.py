"""What the training loop asks of an engine."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from parallel.batch import Batch
from parallel.compose import Fill


@dataclass(frozen=True)
class StepResult:
    """Scalars of one optimizer step, equal on all ranks, still on the device: reading one waits for the step."""

    loss: Tensor
    """cross entropy, nats per token, over the global batch, before the update"""
    gradient_norm: Tensor
    """l2 norm of the whole gradient before clipping; where it is not finite, the step changed nothing"""


class Optimizer(Protocol):
    """What an engine asks of an optimizer: torch's, whose groups also have an `lr_scale`, and that changes nothing in a step
    before which its `found_inf` was set to 1."""

    param_groups: list[dict[str, Any]]

    @property
    def state(self) -> Mapping[Tensor, dict[str, Tensor]]:
        """What it keeps of each parameter."""
        ...

    def step(self) -> Any:
        """Update the parameters from their gradients."""
        ...

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        ...


class Engine(Protocol):
    """Owns the model and the optimizer of one rank."""

    def train_step(self, batches: Sequence[Batch], *, learning_rate: float, tokens: int) -> StepResult:
        """One optimizer step over this rank's micro-batches. `tokens` is the global batch's number of targets."""
        ...

    def evaluate(self, batches: Iterable[Batch]) -> float:
        """Mean cross entropy in nats per target over all ranks' micro-batches. Every rank must bring equally many."""
        ...

    def next_token_logits(self, tokens_S: Tensor) -> Tensor:
        """Logits (V,) of the token after a sequence, float64, equal on every rank, as the sequence must be. A collective."""
        ...

    def named_parameters(self) -> Sequence[tuple[str, Tensor]]:
        """This rank's parameters, by their names in the whole model; DTensors where they are slices."""
        ...

    def modules(self) -> Sequence[nn.Module]:
        """This rank's stages of the model."""
        ...

    def exclude(self, names: Collection[str]) -> None:
        """From now on these parameters, and no others, take no part: no gradient is expected, and `state` leaves them out."""
        ...

    def include_all(self, fill: Fill) -> None:
        """From now on all parameters take part. `fill` writes the values of those that did not, on all ranks in one order; the
        optimizer begins with them from nothing."""
        ...

    def state(self, *, optimizer: bool = True) -> dict[str, Tensor]:
        """What this rank holds of all that a later step depends on, by a name that is the same on every layout.

        "model.NAME" is a parameter, "optimizer.NAME.KEY" what the optimizer keeps of it (there from the first step on). Slices
        are DTensors that know where they lie in the whole. The live tensors, not copies.
        """
        ...

    def load(self, read: Callable[[dict[str, Tensor]], None], *, optimizer: bool = True) -> None:
        """Take a state over: `read` writes into the tensors of `state`. No copy of the former values stays anywhere."""
        ...
