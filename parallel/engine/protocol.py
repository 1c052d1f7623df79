"""The interface between the training loop and an engine."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from parallel.batch import Batch
from parallel.compose import Fill
from parallel.rectangles import Rectangles

State = dict[str, Tensor | Rectangles]
"""This rank's parts of named tensors, which know their places: whole tensors, DTensors, or rectangles."""


@dataclass(frozen=True)
class StepResult:
    """Scalars of one optimizer step, equal on all ranks. They are on the device: reading one waits for the step."""

    loss: Tensor
    """cross entropy of the global batch before the update, nats per token"""
    gradient_norm: Tensor
    """l2 norm of the whole gradient before clipping; if it is not finite, the step changed nothing"""


class Optimizer(Protocol):
    """A torch optimizer whose groups also have an `lr_scale`, and whose step changes nothing if its `found_inf` has been set
    to 1."""

    param_groups: list[dict[str, Any]]

    @property
    def state(self) -> Mapping[Tensor, dict[str, Tensor]]:
        """The optimizer's state of each parameter."""
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
        """One optimizer step over this rank's micro-batches. `tokens` is the number of targets in the global batch."""
        ...

    def evaluate(self, batches: Iterable[Batch]) -> float:
        """Mean cross entropy in nats per target over all ranks' micro-batches. Every rank must have equally many."""
        ...

    def next_token_logits(self, tokens_S: Tensor) -> Tensor:
        """Logits (V,) of the token after a sequence, float64, on every rank. A collective: all ranks pass the same sequence."""
        ...

    def target_log_probabilities(self, batch: Batch) -> Tensor:
        """Log-probability in nats of every target of a micro-batch, float64 (B, S); 0 where there is none.

        Ranks that share its sequences have the scores of their own tokens and zeros elsewhere: the sum over `Meshes.data` is
        complete. A collective: data ranks pass a micro-batch each, equally many. Its whole logits are in memory.
        """
        ...

    def named_parameters(self) -> Sequence[tuple[str, Tensor]]:
        """This rank's parameters with their names in the whole model, as the engine holds them."""
        ...

    def whole(self, name: str) -> Tensor:
        """The whole value of a parameter of this rank's stages. A collective of the ranks that have these stages."""
        ...

    def modules(self) -> Sequence[nn.Module]:
        """This rank's stages of the model."""
        ...

    def exclude(self, names: Collection[str]) -> None:
        """From now on these parameters, and no others, are not trained: they need no gradient, and `state` omits them."""
        ...

    def include_all(self, fill: Fill) -> None:
        """From now on all parameters are trained. `fill` sets the values of those that were excluded, in the same order on all
        ranks; their optimizer state starts from zero."""
        ...

    def state(self, *, optimizer: bool = True) -> State:
        """This rank's part of everything that a later step depends on, under names that are the same on every layout.

        "model.NAME" is a parameter, "optimizer.NAME.KEY" its optimizer state (which exists from the first step on). The tensors
        are the engine's own, not copies.
        """
        ...

    def load(self, read: Callable[[State], None], *, optimizer: bool = True) -> None:
        """Load a state: `read` overwrites the tensors of `state`, and the engine keeps no copy of the former values."""
        ...
