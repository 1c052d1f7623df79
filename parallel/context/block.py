"""Attention of some queries to some keys, with the log-sum-exps that are needed to merge such blocks.

Shape suffixes: B batch, H query heads, K key/value heads, q queries, k keys, D head_dim.
"""

import torch
from torch import Tensor

Mask = Tensor | bool
"""True: every query sees every key. False: causal, for equally many queries and keys. A bool tensor (B, 1, q, k): True where a
query sees a key."""


def forward(query_BHqD: Tensor, key_BKkD: Tensor, value_BKkD: Tensor, mask: Mask, scale: float) -> tuple[Tensor, Tensor]:
    """(output (B, H, q, D) in the dtype of the queries, natural log-sum-exp (B, H, q) in at least fp32).

    A query that sees no key has output 0 and log-sum-exp -inf.
    """
    key, value = _expand(query_BHqD, key_BKkD, value_BKkD)
    if query_BHqD.device.type == "cpu":
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query_BHqD, key, value, 0.0, mask is False, attn_mask=_additive(mask, query_BHqD.dtype), scale=scale
        )
    elif _has_flash(query_BHqD, mask):
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention(
            query_BHqD, key, value, 0.0, mask is False, False, scale=scale
        )[:2]
    else:
        output, lse = forward_plain(query_BHqD, key_BKkD, value_BKkD, mask, scale)
    if isinstance(mask, Tensor):
        lse = lse.masked_fill(~mask.any(dim=-1), float("-inf"))  # the kernels do not define it for a query without keys
    return output, lse


def backward(
    gradient_BHqD: Tensor,
    query_BHqD: Tensor,
    key_BKkD: Tensor,
    value_BKkD: Tensor,
    output_BHqD: Tensor,
    lse_BHq: Tensor,
    mask: Mask,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """This block's part of the gradients of queries, keys and values.

    `output_BHqD` and `lse_BHq` belong to the attention over all blocks, so each block computes the final probabilities, and the
    gradients of the blocks add up (Dao et al., FlashAttention, arXiv 2205.14135, algorithm 4).
    """
    key, value = _expand(query_BHqD, key_BKkD, value_BKkD)
    if query_BHqD.device.type == "cpu":
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient_BHqD, query_BHqD, key, value, output_BHqD, lse_BHq, 0.0, mask is False,
            attn_mask=_additive(mask, query_BHqD.dtype), scale=scale,
        )  # fmt: skip
    elif _has_flash(query_BHqD, mask):
        empty, queries, keys = torch.empty(0, device=query_BHqD.device), query_BHqD.shape[2], key.shape[2]
        seed = torch.zeros((), dtype=torch.int64, device=query_BHqD.device)
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            gradient_BHqD, query_BHqD, key, value, output_BHqD, lse_BHq, empty, empty, queries, keys, 0.0, mask is False,
            seed, seed, scale=scale,
        )  # fmt: skip
    else:
        return backward_plain(gradient_BHqD, query_BHqD, key_BKkD, value_BKkD, output_BHqD, lse_BHq, mask, scale)
    query_gradient, key_gradient, value_gradient = gradients
    return query_gradient, _reduce(key_gradient, key_BKkD), _reduce(value_gradient, value_BKkD)


def forward_plain(query_BHqD: Tensor, key_BKkD: Tensor, value_BKkD: Tensor, mask: Mask, scale: float) -> tuple[Tensor, Tensor]:
    """`forward` by its formula, on any device and in any dtype."""
    key, value = _expand(query_BHqD, key_BKkD, value_BKkD)
    scores = _scores(query_BHqD, key, mask, scale)
    lse = scores.logsumexp(dim=-1)
    weights = (scores - lse[..., None]).exp().nan_to_num(0.0)  # -inf - -inf, where a query sees no key
    return (weights @ value.to(weights.dtype)).to(query_BHqD.dtype), lse


def backward_plain(
    gradient_BHqD: Tensor,
    query_BHqD: Tensor,
    key_BKkD: Tensor,
    value_BKkD: Tensor,
    output_BHqD: Tensor,
    lse_BHq: Tensor,
    mask: Mask,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`backward` by its formula, on any device and in any dtype."""
    key, value = _expand(query_BHqD, key_BKkD, value_BKkD)
    weights = (_scores(query_BHqD, key, mask, scale) - lse_BHq[..., None]).exp()
    gradient, dtype = gradient_BHqD.to(weights.dtype), query_BHqD.dtype
    delta = (gradient * output_BHqD.to(weights.dtype)).sum(dim=-1, keepdim=True)
    scores_gradient = weights * (gradient @ value.to(weights.dtype).mT - delta) * scale
    query_gradient = scores_gradient @ key.to(weights.dtype)
    key_gradient = scores_gradient.mT @ query_BHqD.to(weights.dtype)
    value_gradient = weights.mT @ gradient
    return query_gradient.to(dtype), _reduce(key_gradient.to(dtype), key_BKkD), _reduce(value_gradient.to(dtype), value_BKkD)


def _scores(query: Tensor, key: Tensor, mask: Mask, scale: float) -> Tensor:
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(dtype) @ key.to(dtype).mT * scale
    if mask is False:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    masked: Tensor = scores.masked_fill(~mask, float("-inf")) if isinstance(mask, Tensor) else scores
    return masked


def _additive(mask: Mask, dtype: torch.dtype) -> Tensor | None:
    if not isinstance(mask, Tensor):
        return None
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def _has_flash(query: Tensor, mask: Mask) -> bool:
    return not isinstance(mask, Tensor) and query.dtype in (torch.float16, torch.bfloat16)


def _expand(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values repeated for every query head: only here, so that ranks never send the copies."""
    group = query.shape[1] // key.shape[1]
    return (key, value) if group == 1 else (key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1))


def _reduce(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient of each key/value head: the sum over its query heads."""
    if gradient.shape[1] == like.shape[1]:
        return gradient
    summed: Tensor = gradient.unflatten(1, (like.shape[1], -1)).sum(dim=2)
    return summed
