"""Running the micro-batches of a step through this rank's part of the model."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from parallel.batch import Batch
from parallel.replicas import ReplicaSums


class Runner(Protocol):
    """Runs micro-batches through this rank's part of the model."""

    def train(self, batches: Sequence[Batch], tokens: int) -> Tensor:
        """Forward and backward passes of one step, which add the gradients of objective / `tokens`.

        Returns (cross entropy, number of targets), float64, summed over the micro-batches; zeros on a rank without logits.
        """
        ...

    def forward(self, batch: Batch, *, loss: bool) -> Tensor | None:
        """Forward pass of one micro-batch on the device. Returns the sums of its loss (see `StageModel`) or this rank's part of
        the logits; None on a rank without the last stage."""
        ...


class WholeModelRunner:
    """Runs one micro-batch after the other through a model that is not cut into stages."""

    def __init__(self, model: nn.Module, device: torch.device, replicas: ReplicaSums | None) -> None:
        """`replicas`: what sums gradients over data ranks; None if FSDP does, or if there is one."""
        self.model, self.device, self.replicas = model, device, replicas

    def train(self, batches: Sequence[Batch], tokens: int) -> Tensor:
        """See `Runner`."""
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for index, batch in enumerate(batches):
            if isinstance(self.model, FSDPModule):
                # Gradients are reduced once per step, in the backward pass of the last micro-batch.
                self.model.set_requires_gradient_sync(index == len(batches) - 1)
            sums = self.forward(batch.to(self.device), loss=True)
            if self.replicas is not None and index == len(batches) - 1:
                self.replicas.begin()
            (sums[0] / tokens).backward()
            total += sums[1:].detach()
        return total

    def forward(self, batch: Batch, *, loss: bool) -> Tensor:
        """See `Runner`."""
        output: Tensor = self.model(batch.tokens_BS, batch.document_BS, batch.targets_BS if loss else None)
        return output
