"""The training objective, as sums over tokens. Whoever knows the global token count divides."""

import torch
import torch.nn.functional as F
from torch import Tensor

from train.data.loader import IGNORE


def loss_sums(logits_BSV: Tensor, targets_BS: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
    """(objective, cross entropy, number of targets): scalars summed over all targets but IGNORE, in nats, at least in fp32.

    The objective adds `z_loss` x log(Z)^2 per token, which keeps the softmax normaliser Z near one
    (Chowdhery et al., PaLM, arXiv 2204.02311, section 5).
    """
    logits_TV = logits_BSV.flatten(0, 1)
    logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    targets_T = targets_BS.flatten()
    cross_entropy = F.cross_entropy(logits_TV, targets_T, ignore_index=IGNORE, reduction="sum")
    counted_T = targets_T != IGNORE
    objective = cross_entropy
    if z_loss > 0.0:
        objective = cross_entropy + z_loss * (logits_TV.logsumexp(dim=-1).square() * counted_T).sum()
    return objective, cross_entropy.detach(), counted_T.sum()
