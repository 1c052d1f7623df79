"""Running the micro-batches of a step through this rank's part of the model."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from parallel.batch import Batch
from parallel.engine.blueprint import LossSums


class Runner(Protocol):
    """Runs micro-batches through this rank's part of the model."""

    def train(self, batches: Sequence[Batch], tokens: int) -> Tensor:
        """Forward and backward passes of one step, which add the gradients of objective / `tokens`.

        Returns (cross entropy, number of targets), float64, summed over the micro-batches; zeros on a rank without logits.
        """
        ...

    def logits(self, batch: Batch) -> Tensor | None:
        """Forward pass of one micro-batch on the device. Returns this rank's part of the logits; None if it has none."""
        ...


class WholeModelRunner:
    """Runs one micro-batch after the other through a model that is not cut into stages."""

    def __init__(self, model: nn.Module, loss_sums: LossSums, device: torch.device) -> None:
        self.model, self.loss_sums, self.device = model, loss_sums, device

    def train(self, batches: Sequence[Batch], tokens: int) -> Tensor:
        """See `Runner`."""
        sums = []
        for index, batch in enumerate(batches):
            if isinstance(self.model, FSDPModule):
                # Gradients are reduced once per step, in the backward pass of the last micro-batch.
                self.model.set_requires_gradient_sync(index == len(batches) - 1)
            on_device = batch.to(self.device)
            objective, cross_entropy, targets = self.loss_sums(self.logits(on_device), on_device.targets_BS)
            (objective / tokens).backward()
            sums.append(torch.stack((cross_entropy.double(), targets.double())))
        return torch.stack(sums).sum(dim=0)

    def logits(self, batch: Batch) -> Tensor:
        """See `Runner`."""
        logits_BSV: Tensor = self.model(batch.tokens_BS, batch.document_BS)
        return logits_BSV
