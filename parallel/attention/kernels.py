"""The attention of some queries to some keys: all of them, or a triangle. By torch's fused kernels where a device has one.

Shape suffixes: B batch, H query heads, K key/value heads, q queries, k keys, D head_dim.
"""

import torch
from torch import Tensor

TILE = 1024
"""Queries whose scores the plain formula has in memory at once."""


def forward(query_BHqD: Tensor, key_BKkD: Tensor, value_BKkD: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """(output (B, H, q, D) in the dtype of the queries, natural log-sum-exp (B, H, q) in at least fp32).

    `causal` needs equally many queries and keys. Every query sees a key.
    """
    if query_BHqD.device.type == "cpu":
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query_BHqD, key_BKkD, value_BKkD, 0.0, causal, scale=scale
        )
        return output, lse
    if _has_flash(query_BHqD):
        key, value = _expand(query_BHqD, key_BKkD, value_BKkD)
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention(
            query_BHqD, key, value, 0.0, causal, False, scale=scale
        )[:2]
        return output, lse
    return forward_plain(query_BHqD, key_BKkD, value_BKkD, causal, scale)


def backward(
    gradient_BHqD: Tensor,
    query_BHqD: Tensor,
    key_BKkD: Tensor,
    value_BKkD: Tensor,
    output_BHqD: Tensor,
    lse_BHq: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """This piece's part of the gradients of queries, keys and values.

    `output_BHqD` and `lse_BHq` belong to the attention over all pieces, so each piece computes the final probabilities, and the
    gradients of the pieces add up (Dao et al., FlashAttention, arXiv 2205.14135, algorithm 4).
    """
    if query_BHqD.device.type == "cpu":
        query_gradient, key_gradient, value_gradient = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient_BHqD, query_BHqD, key_BKkD, value_BKkD, output_BHqD, lse_BHq, 0.0, causal, scale=scale
        )
        return query_gradient, key_gradient, value_gradient
    if _has_flash(query_BHqD):
        key, value = _expand(query_BHqD, key_BKkD, value_BKkD)
        seed = torch.zeros((), dtype=torch.int64, device=query_BHqD.device)
        query_gradient, key_gradient, value_gradient = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            gradient_BHqD, query_BHqD, key, value, output_BHqD, lse_BHq, None, None, query_BHqD.shape[2], key.shape[2], 0.0,
            causal, seed, seed, scale=scale,
        )  # fmt: skip
        return query_gradient, _reduce(key_gradient, key_BKkD), _reduce(value_gradient, value_BKkD)
    return backward_plain(gradient_BHqD, query_BHqD, key_BKkD, value_BKkD, output_BHqD, lse_BHq, causal, scale)


def forward_plain(
    query_BHqD: Tensor, key_BKkD: Tensor, value_BKkD: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """`forward` by its formula, on any device and in any dtype."""
    key, value = _expand(query_BHqD, key_BKkD, value_BKkD)
    outputs, lses = [], []
    for start in range(0, query_BHqD.shape[2], TILE):
        scores = _scores(query_BHqD[:, :, start : start + TILE], key, causal, start, scale)
        lse = scores.logsumexp(dim=-1)
        weights = (scores - lse[..., None]).exp()
        outputs.append((weights @ value.to(weights.dtype)).to(query_BHqD.dtype))
        lses.append(lse)
    return torch.cat(outputs, dim=2), torch.cat(lses, dim=2)


def backward_plain(
    gradient_BHqD: Tensor,
    query_BHqD: Tensor,
    key_BKkD: Tensor,
    value_BKkD: Tensor,
    output_BHqD: Tensor,
    lse_BHq: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`backward` by its formula, on any device and in any dtype."""
    key, value = _expand(query_BHqD, key_BKkD, value_BKkD)
    dtype = torch.promote_types(query_BHqD.dtype, torch.float32)
    key, value = key.to(dtype), value.to(dtype)
    query_gradients, key_gradient, value_gradient = [], torch.zeros_like(key), torch.zeros_like(value)
    for start in range(0, query_BHqD.shape[2], TILE):
        tile = slice(start, start + TILE)
        query, gradient, output = (tensor[:, :, tile].to(dtype) for tensor in (query_BHqD, gradient_BHqD, output_BHqD))
        weights = (_scores(query, key, causal, start, scale) - lse_BHq[:, :, tile, None]).exp()
        delta = (gradient * output).sum(dim=-1, keepdim=True)
        scores_gradient = weights * (gradient @ value.mT - delta) * scale
        query_gradients.append((scores_gradient @ key).to(query_BHqD.dtype))
        key_gradient += scores_gradient.mT @ query
        value_gradient += weights.mT @ gradient
    kind = query_BHqD.dtype
    return (
        torch.cat(query_gradients, dim=2),
        _reduce(key_gradient.to(kind), key_BKkD),
        _reduce(value_gradient.to(kind), value_BKkD),
    )


def _scores(query: Tensor, key: Tensor, causal: bool, first: int, scale: float) -> Tensor:
    """Scores of the queries from number `first` on."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores: Tensor = query.to(dtype) @ key.to(dtype).mT * scale
    if not causal:
        return scores
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(diagonal=first + 1)
    return scores.masked_fill_(hidden, float("-inf"))


def _has_flash(query: Tensor) -> bool:
    return query.device.type == "cuda" and query.dtype in (torch.float16, torch.bfloat16)


def _expand(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values for every query head: only here, after all communication."""
    group = query.shape[1] // key.shape[1]
    return (key, value) if group == 1 else (key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1))


def _reduce(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient of each key/value head: the sum over its query heads."""
    if gradient.shape[1] == like.shape[1]:
        return gradient
    of_group: Tensor = gradient.unflatten(1, (like.shape[1], -1)).sum(dim=2)
    return of_group
