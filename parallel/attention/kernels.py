"""The attention of some queries to some keys: all of them, or a triangle. By torch's fused kernels where a device has one.

Shape suffixes: B batch, H query heads, K key/value heads, q queries, k keys, D head_dim.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import UserError
from parallel.names import KernelName

TILE = 1024
"""Queries whose scores the plain formula has in memory at once."""


@dataclass(frozen=True)
class Kernel:
    """One way to compute attention, and where it can."""

    has: Callable[[str, torch.dtype], bool]
    """whether there is one for a type of device and a dtype"""
    forward: Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor, Tensor]]


_chosen: KernelName = "auto"


def use(name: KernelName, device: str, dtype: torch.dtype) -> None:
    """From now on this process computes attention by the kernel of that name. `device`: the type of device it will be for.

    Raises:
        UserError: there is no such kernel for the device and the dtype.
    """
    global _chosen
    available = [other for other, kernel in KERNELS.items() if kernel.has(device, dtype)]
    if name != "auto" and name not in available:
        kind = str(dtype).removeprefix("torch.")
        raise UserError(
            f"train.attention={name}: there is no such kernel for {device} and {kind}; there is: {', '.join(available)}"
        )
    _chosen = name


def _kernel(query: Tensor) -> Kernel:
    """The first of the table that the tensor's device and dtype have, unless one was chosen that has them."""
    device, dtype = query.device.type, query.dtype
    names: list[str] = [_chosen, *KERNELS] if _chosen != "auto" else [*KERNELS]
    return next(KERNELS[name] for name in names if KERNELS[name].has(device, dtype))


def forward(query_BHqD: Tensor, key_BKkD: Tensor, value_BKkD: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """(output (B, H, q, D) in the dtype of the queries, natural log-sum-exp (B, H, q) in at least fp32).

    `causal` needs equally many queries and keys. Every query sees a key.
    """
    return _kernel(query_BHqD).forward(query_BHqD, key_BKkD, value_BKkD, causal, scale)


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
    by = _kernel(query_BHqD).backward
    return by(gradient_BHqD, query_BHqD, key_BKkD, value_BKkD, output_BHqD, lse_BHq, causal, scale)


def _forward_fused(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    aten = torch.ops.aten
    if query.device.type == "cpu":
        output, lse = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
        return output, lse
    wide_key, wide_value = _expand(query, key, value)
    output, lse = aten._scaled_dot_product_flash_attention(query, wide_key, wide_value, 0.0, causal, False, scale=scale)[:2]
    return output, lse


def _backward_fused(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    aten = torch.ops.aten
    if query.device.type == "cpu":
        query_gradient, key_gradient, value_gradient = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, query, key, value, output, lse, 0.0, causal, scale=scale
        )
        return query_gradient, key_gradient, value_gradient
    wide_key, wide_value = _expand(query, key, value)
    seed = torch.zeros((), dtype=torch.int64, device=query.device)
    query_gradient, key_gradient, value_gradient = aten._scaled_dot_product_flash_attention_backward(
        gradient, query, wide_key, wide_value, output, lse, None, None, query.shape[2], key.shape[2], 0.0, causal, seed, seed,
        scale=scale,
    )  # fmt: skip
    return query_gradient, _reduce(key_gradient, key), _reduce(value_gradient, value)


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


def _has_fused(device: str, dtype: torch.dtype) -> bool:
    return device == "cpu" or (device == "cuda" and dtype in (torch.float16, torch.bfloat16))


KERNELS = {
    "fused": Kernel(_has_fused, _forward_fused, _backward_fused),
    "plain": Kernel(lambda device, dtype: True, forward_plain, backward_plain),
}
"""From the fastest on."""
