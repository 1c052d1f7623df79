"""The training objective from hidden states, without whole logits.

Logits exist for a chunk of tokens at a time. Their gradient is worked out at once, in the forward pass, so that neither is
kept: what stays is the gradient of the hidden states and of the head's weight (the fused linear cross entropy of Hsu et al.,
Liger Kernel, arXiv 2410.10989).

Shape suffixes: B rows, S sequence, T tokens, C tokens of a chunk, E hidden size, V this rank's part of the vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.batch import IGNORE
from parallel.logits import chunk_of


def chunk_tokens(hidden_TE: Tensor, vocabulary: int) -> int:
    """How many tokens' logits are held at a time (`parallel.logits`, which the planner counts by)."""
    tokens, hidden_size = hidden_TE.shape
    return chunk_of(tokens, hidden_size, vocabulary, on_cpu=hidden_TE.device.type == "cpu")


def loss_sums(
    hidden_BSE: Tensor,
    weight_VE: Tensor,
    targets_BS: Tensor,
    *,
    z_loss: float = 0.0,
    group: dist.ProcessGroup | None = None,
    chunk: int | None = None,
) -> Tensor:
    """(objective, cross entropy, number of targets), float64 (3,), summed over all targets but IGNORE, in nats.

    Only the objective can be differentiated, and once. It adds `z_loss` x log(Z)^2 per token, which keeps the softmax
    normaliser Z near one (Chowdhery et al., PaLM, arXiv 2204.02311, section 5). Softmax is in fp32 at least.

    With a `group`, rank r of it has the weight's rows of token ids from r V to below (r + 1) V (Shoeybi et al., Megatron-LM,
    arXiv 1909.08053, section 3). The sums are equal on all its ranks; the gradient of the hidden states is the rank's term of a
    sum over them. `chunk`: how many tokens' logits are held at a time; None: `chunk_tokens`.
    """
    hidden_TE, targets_T = hidden_BSE.flatten(0, 1), targets_BS.flatten()
    differentiated = torch.is_grad_enabled() and (hidden_TE.requires_grad or weight_VE.requires_grad)
    chunks = _Chunks(hidden_TE.detach(), weight_VE.detach(), targets_T, z_loss, group, differentiated)
    with torch.no_grad():
        sums = chunks.run(chunk or chunk_tokens(hidden_TE, weight_VE.shape[0]))
    objective, cross_entropy = sums.unbind()
    if differentiated:
        for tensor, gradient in ((hidden_TE, chunks.hidden_gradient_TE), (weight_VE, chunks.weight_gradient_VE)):
            if tensor.requires_grad:
                objective = objective + _GivenGradient.apply(tensor, _Once(gradient))
    return torch.stack((objective, cross_entropy, (targets_T != IGNORE).sum().double()))


class _Chunks:
    """Sums and gradients of a loss, chunk after chunk."""

    def __init__(
        self,
        hidden_TE: Tensor,
        weight_VE: Tensor,
        targets_T: Tensor,
        z_loss: float,
        group: dist.ProcessGroup | None,
        differentiated: bool,
    ) -> None:
        self.hidden_TE, self.weight_VE, self.targets_T = hidden_TE, weight_VE, targets_T
        self.z_loss, self.group, self.differentiated = z_loss, group, differentiated
        self.softmax_dtype = torch.promote_types(hidden_TE.dtype, torch.float32)
        self.first_id = 0 if group is None else group.rank() * weight_VE.shape[0]
        if differentiated:
            self.hidden_gradient_TE = torch.empty_like(hidden_TE)
            # Terms of many chunks are added up, so their sum has more digits than bf16.
            self.weight_gradient_VE = torch.zeros_like(weight_VE, dtype=self.softmax_dtype)

    def run(self, chunk: int) -> Tensor:
        """(objective, cross entropy), float64 (2,)."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.hidden_TE.device)
        for part in _parts(self.hidden_TE.shape[0], chunk):
            sums += self._chunk(part)
        return sums

    def _chunk(self, part: slice) -> Tensor:
        hidden_CE, targets_C = self.hidden_TE[part], self.targets_T[part]
        counted_C = targets_C != IGNORE
        logits_CV = (hidden_CE @ self.weight_VE.T).to(self.softmax_dtype)
        position_C = targets_C - self.first_id
        is_here_C = (position_C >= 0) & (position_C < logits_CV.shape[1])
        position_C1 = position_C.clamp(0, logits_CV.shape[1] - 1)[:, None]
        target_logit_C = logits_CV.gather(1, position_C1)[:, 0] * is_here_C
        largest_C = logits_CV.amax(dim=1)
        if self.group is not None:
            dist.all_reduce(largest_C, op=dist.ReduceOp.MAX, group=self.group)
        # In place from here on: there is one tensor of a chunk's size, its gradient in the end.
        exponential_CV = logits_CV.sub_(largest_C[:, None]).exp_()
        sum_C = exponential_CV.sum(dim=1)
        if self.group is not None:
            both_2C = torch.stack((sum_C, target_logit_C))
            dist.all_reduce(both_2C, group=self.group)
            sum_C, target_logit_C = both_2C.unbind()
        log_z_C = sum_C.log() + largest_C
        cross_entropy_C = (log_z_C - target_logit_C) * counted_C
        objective_C = cross_entropy_C + self.z_loss * (log_z_C.square() * counted_C)
        if self.differentiated:
            slope_C = counted_C * (1.0 + 2.0 * self.z_loss * log_z_C)
            gradient_CV = exponential_CV.mul_((slope_C / sum_C)[:, None])
            gradient_CV.scatter_add_(1, position_C1, -(counted_C & is_here_C).to(gradient_CV.dtype)[:, None])
            self._add(part, gradient_CV.to(hidden_CE.dtype), hidden_CE)
        return torch.stack((objective_C.double().sum(), cross_entropy_C.double().sum()))

    def _add(self, part: slice, gradient_CV: Tensor, hidden_CE: Tensor) -> None:
        torch.mm(gradient_CV, self.weight_VE, out=self.hidden_gradient_TE[part])
        if hidden_CE.dtype == self.softmax_dtype:
            self.weight_gradient_VE.addmm_(gradient_CV.T, hidden_CE)
        else:
            self.weight_gradient_VE += gradient_CV.T @ hidden_CE


def _parts(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


class _Once:
    """A tensor that is taken out once, so that nobody holds it any longer."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor: Tensor | None = tensor

    def take(self) -> Tensor:
        assert self._tensor is not None, "the loss can be differentiated once"
        tensor, self._tensor = self._tensor, None
        return tensor


class _GivenGradient(torch.autograd.Function):
    """0, whose gradient with respect to a tensor is given.

    One node for each tensor: a pipeline that runs a backward pass in two parts, first for inputs and then for weights, executes
    each node once.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, gradient: _Once) -> Tensor:
        ctx.gradient, ctx.dtype = gradient, tensor.dtype
        return torch.zeros((), dtype=torch.float64, device=tensor.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # In place and without a reference left, so that autograd can make it the parameter's gradient without a copy.
        return ctx.gradient.take().mul_(gradients[0]).to(ctx.dtype), None
