"""Log-probabilities of targets from logits whose vocabulary is divided over ranks.

Shape suffixes: T tokens, C tokens of a chunk, V this rank's part of the vocabulary.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.batch import IGNORE

_CHUNK_TOKENS = 1024


def log_probabilities(logits_TV: Tensor, targets_T: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Log-probability in nats of every target, float64 (T,); 0 where the target is IGNORE. Equal on all ranks of the group.

    Rank r of `group` has the logits of token ids from r V to below (r + 1) V. Softmax is in fp32 at least.
    """
    dtype = torch.promote_types(logits_TV.dtype, torch.float32)
    chunks = zip(logits_TV.split(_CHUNK_TOKENS), targets_T.split(_CHUNK_TOKENS), strict=True)
    return torch.cat([_chunk(logits_CV.to(dtype), targets_C, group) for logits_CV, targets_C in chunks])


def _chunk(logits_CV: Tensor, targets_C: Tensor, group: dist.ProcessGroup) -> Tensor:
    width = logits_CV.shape[1]
    position_C = targets_C - group.rank() * width
    is_here_C = (position_C >= 0) & (position_C < width)
    target_C = logits_CV.gather(1, position_C.clamp(0, width - 1)[:, None])[:, 0] * is_here_C
    largest_C = logits_CV.amax(dim=1)
    dist.all_reduce(largest_C, op=dist.ReduceOp.MAX, group=group)
    both_2C = torch.stack(((logits_CV - largest_C[:, None]).exp().sum(dim=1), target_C))
    dist.all_reduce(both_2C, group=group)
    sum_C, target_C = both_2C.double().unbind()
    return (target_C - largest_C - sum_C.log()) * (targets_C != IGNORE)
