"""The default engine: PyTorch's own FSDP2, DTensor and pipelining under plain autograd."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.profiler import record_function

from parallel.batch import Batch
from parallel.engine.protocol import StepResult
from parallel.gradients import align_gradients, clip, gradient_norm, sum_tied_gradients
from parallel.mesh import Meshes
from parallel.pipeline import Part, gather_over_stages

LossSums = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(logits, targets) -> (objective, cross entropy, number of targets), scalars summed over the batch.

Only the objective has a gradient."""


class Runner(Protocol):
    """How micro-batches pass through this rank's part of the model.

    Both return (cross entropy, number of targets), float64, summed over the micro-batches; zeros on a rank that has no logits.
    """

    def train(self, batches: Sequence[Batch], tokens: int) -> Tensor:
        """Forward and backward of one step; gradients of objective / `tokens`."""
        ...

    def evaluate(self, batch: Batch) -> Tensor:
        """Forward of one micro-batch."""
        ...


class WholeModelRunner:
    """One micro-batch after the other through a model that is not cut into stages."""

    def __init__(self, model: nn.Module, loss_sums: LossSums, device: torch.device) -> None:
        self.model, self.loss_sums, self.device = model, loss_sums, device

    def train(self, batches: Sequence[Batch], tokens: int) -> Tensor:
        """See `Runner`."""
        sums = []
        for index, batch in enumerate(batches):
            if isinstance(self.model, FSDPModule):
                # Gradients are reduced once a step, with the last micro-batch.
                self.model.set_requires_gradient_sync(index == len(batches) - 1)
            objective, counts = self._forward(batch)
            (objective / tokens).backward()
            sums.append(counts)
        return torch.stack(sums).sum(dim=0)

    def evaluate(self, batch: Batch) -> Tensor:
        """See `Runner`."""
        return self._forward(batch)[1]

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        here = batch.to(self.device)
        logits_BSV = self.model(here.tokens_BS, here.document_BS)
        objective, cross_entropy, targets = self.loss_sums(logits_BSV, here.targets_BS)
        return objective, torch.stack((cross_entropy.double(), targets.double()))


class NativeEngine:
    """Runs micro-batches, sums gradients over the data ranks, clips, steps."""

    def __init__(
        self,
        parts: Sequence[Part],
        runner: Runner,
        optimizer: torch.optim.Optimizer,
        meshes: Meshes,
        *,
        device: torch.device,
        clip_norm: float,
        tied: str | None,
    ) -> None:
        """`tied` names the parameter that a pipeline's first and last stage both have, if there is one."""
        self.parts = parts
        self.runner = runner
        self.optimizer = optimizer
        self.device = device
        self.clip_norm = clip_norm
        self.data_group = meshes.data.get_group("data")
        self.pipeline_group = meshes.axes.get_group("pipeline")
        self.pipelined = self.pipeline_group.size() > 1
        self.tied_first, self.tied_last = _tied_copies(parts, tied) if self.pipelined else (None, None)
        # Stages in a loop: the other copy is at the other end of the pipeline. V-shaped: both are on the first rank.
        self.tied_peer = self.pipeline_group.size() - 1 if self.tied_first is not None else 0

    def train_step(self, batches: Sequence[Batch], *, learning_rate: float, tokens: int) -> StepResult:
        """See `Engine.train_step`."""
        for part in self.parts:
            part.module.train()
        with record_function("forward_backward"):
            sums = self._over_ranks(self.runner.train(batches, tokens))
        with record_function("gradient_norm"):
            norm = self._finish_gradients()
        with record_function("optimizer"):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return StepResult(sums[0] / tokens, norm)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> float:
        """See `Engine.evaluate`."""
        for part in self.parts:
            part.module.eval()
        sums = self._over_ranks(torch.stack([self.runner.evaluate(batch) for batch in batches]).sum(dim=0))
        cross_entropy, targets = sums.tolist()
        return float(cross_entropy / targets)

    def parameters(self) -> Iterator[nn.Parameter]:
        """See `Engine.parameters`."""
        for part in self.parts:
            yield from part.module.parameters()

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """See `Engine.full_parameters`."""
        whole = self._whole_parameters()
        return gather_over_stages(whole, self.pipeline_group, self.device) if self.pipelined else whole

    def _whole_parameters(self) -> Iterator[tuple[str, Tensor]]:
        for part in self.parts:
            for name, parameter in part.module.named_parameters():
                whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
                yield name, whole.detach().cpu()

    def _over_ranks(self, sums: Tensor) -> Tensor:
        dist.all_reduce(sums, group=self.data_group)
        if self.pipelined:
            dist.all_reduce(sums, group=self.pipeline_group)
        return sums

    def _finish_gradients(self) -> Tensor:
        """Complete the gradients, clip them, return their norm over all stages."""
        align_gradients(self.parameters())
        sum_tied_gradients(self.tied_first, self.tied_last, self.pipeline_group, self.tied_peer)
        gradients = {parameter: parameter.grad for parameter in self.parameters() if parameter.grad is not None}
        # A tied weight's second copy has the first one's gradient, which counts once.
        norm = gradient_norm([grad for parameter, grad in gradients.items() if parameter is not self.tied_last], self.device)
        clip(list(gradients.values()), norm, self.clip_norm)
        return norm


def _tied_copies(parts: Sequence[Part], name: str | None) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """This rank's copies of a tied parameter: the first stage's and the last one's."""
    copies: Mapping[bool, nn.Parameter] = {
        part.stage.first: parameter
        for part in parts
        for parameter_name, parameter in part.module.named_parameters()
        if parameter_name == name
    }
    return copies.get(True), copies.get(False)
