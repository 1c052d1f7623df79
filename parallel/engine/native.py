"""The default engine: PyTorch's own FSDP2 under plain autograd."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Generic

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from parallel.engine.protocol import Batch, ForwardLoss, StepResult
from parallel.mesh import Meshes
from parallel.tensor import align_gradients


class NativeEngine(Generic[Batch]):
    """Accumulates micro-batches, sums gradients over the data ranks, clips, steps."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        meshes: Meshes,
        forward_loss: ForwardLoss[Batch],
        *,
        clip_norm: float,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.forward_loss = forward_loss
        self.clip_norm = clip_norm
        self.data_group = meshes.data.get_group("data")

    def train_step(self, batches: Sequence[Batch], *, learning_rate: float, tokens: int) -> StepResult:
        """See `Engine.train_step`."""
        self.model.train()
        cross_entropy_sums = []
        for index, batch in enumerate(batches):
            if isinstance(self.model, FSDPModule):
                # Gradients are reduced once a step, with the last micro-batch.
                self.model.set_requires_gradient_sync(index == len(batches) - 1)
            objective, cross_entropy, _ = self.forward_loss(self.model, batch)
            (objective / tokens).backward()
            cross_entropy_sums.append(cross_entropy)
        loss = torch.stack(cross_entropy_sums).sum() / tokens
        dist.all_reduce(loss, group=self.data_group)
        align_gradients(self.model.parameters())
        gradient_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        if isinstance(gradient_norm, DTensor):
            gradient_norm = gradient_norm.full_tensor()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss, gradient_norm)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> float:
        """See `Engine.evaluate`."""
        self.model.eval()
        sums = []
        for batch in batches:
            _, cross_entropy, targets = self.forward_loss(self.model, batch)
            sums.append(torch.stack((cross_entropy.double(), targets.double())))
        total = torch.stack(sums).sum(dim=0)
        dist.all_reduce(total, group=self.data_group)
        cross_entropy_sum, num_targets = total.tolist()
        return float(cross_entropy_sum / num_targets)

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """See `Engine.full_parameters`."""
        for name, parameter in self.model.named_parameters():
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            yield name, whole.detach().cpu()
