"""The training objective, as sums over tokens. The engine divides them by the global token count."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from parallel.batch import IGNORE
from parallel.tensor import vocabulary_parallel_terms


def loss_sums(
    logits_BSV: Tensor, targets_BS: Tensor, z_loss: float, vocabulary_group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(objective, cross entropy, number of targets): scalars summed over all targets but IGNORE, in nats, at least in fp32.

    The objective adds `z_loss` x log(Z)^2 per token, which keeps the softmax normaliser Z near one
    (Chowdhery et al., PaLM, arXiv 2204.02311, section 5). With a `vocabulary_group`, each of its ranks has a part of the
    vocabulary, so no rank has the whole logits; the results are equal on all of them.
    """
    logits_TV = logits_BSV.flatten(0, 1)
    logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    targets_T = targets_BS.flatten()
    counted_T = targets_T != IGNORE
    if vocabulary_group is not None:
        log_z_T, target_logit_T = vocabulary_parallel_terms(logits_TV, targets_T.clamp(min=0), vocabulary_group)
        cross_entropy = ((log_z_T - target_logit_T) * counted_T).sum()
    else:
        cross_entropy = F.cross_entropy(logits_TV, targets_T, ignore_index=IGNORE, reduction="sum")
        log_z_T = logits_TV.logsumexp(dim=-1) if z_loss > 0.0 else cross_entropy
    objective = cross_entropy
    if z_loss > 0.0:
        objective = cross_entropy + z_loss * (log_z_T.square() * counted_T).sum()
    return objective, cross_entropy.detach(), counted_T.sum()
