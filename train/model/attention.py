"""Grouped-query attention with rotary positions, within documents.

Shape suffixes: B batch, S sequence (under context parallelism this rank's part of it), E hidden size, H heads, K key/value
heads, D head_dim.
"""

import math

import torch
from torch import Tensor, nn

from parallel.attention.attend import attend
from parallel.context.partition import Partition
from parallel.context.protocol import ContextParallel
from parallel.shape import ModelShape
from train.model.architecture import Rope


def rotary_angles(positions_S: Tensor, head_dim: int, rope: Rope, dtype: torch.dtype) -> Tensor:
    """Angles of the rotary embedding, shape (S, D / 2), in `dtype` (Su et al., RoFormer, arXiv 2104.09864, eq. 15).

    Its low frequencies are scaled as in the reference code of Llama 3.1 (`apply_scaling`).
    """
    exponents = torch.arange(0, head_dim, 2, device=positions_S.device, dtype=dtype) / head_dim
    frequencies = rope.theta**-exponents
    if rope.factor != 1.0:
        turns = rope.original_sequence * frequencies / (2 * math.pi)
        kept = ((turns - rope.low) / (rope.high - rope.low)).clamp(0.0, 1.0)
        frequencies = (1 - kept) * frequencies / rope.factor + kept * frequencies
    return torch.outer(positions_S.to(dtype), frequencies)


def rotate(heads_BHSD: Tensor, cos_SD: Tensor, sin_SD: Tensor) -> Tensor:
    """Rotate the pairs of channels (i, i + D/2), as Hugging Face's Llama pairs them. cos and sin have shape (S, D/2)."""
    first, second = heads_BHSD.to(cos_SD.dtype).chunk(2, dim=-1)
    rotated = torch.cat((first * cos_SD - second * sin_SD, second * cos_SD + first * sin_SD), dim=-1)
    return rotated.to(heads_BHSD.dtype)


class Attention(nn.Module):
    """Causal self-attention within documents. Input and output (B, S, E).

    `pieces_or_partition` are the pieces of whole sequences: which queries see which keys (`parallel.attention.plan.encode`).
    Under context parallelism it is the partition of the sequences over ranks, and `context` computes the attention.
    """

    def __init__(self, shape: ModelShape, norm_eps: float, scale: float) -> None:
        """`scale` multiplies the products of queries and keys."""
        super().__init__()
        self.scale = scale
        self.context: ContextParallel | None = None
        self.num_heads, self.num_kv_heads, self.head_dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        queries, keys, bias = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim, shape.qkv_bias
        self.query = nn.Linear(shape.hidden_size, queries, bias=bias)
        self.key = nn.Linear(shape.hidden_size, keys, bias=bias)
        self.value = nn.Linear(shape.hidden_size, keys, bias=bias)
        self.output = nn.Linear(shape.num_heads * shape.head_dim, shape.hidden_size, bias=False)
        self.query_norm = nn.RMSNorm(shape.head_dim, eps=norm_eps) if shape.qk_norm else None
        self.key_norm = nn.RMSNorm(shape.head_dim, eps=norm_eps) if shape.qk_norm else None

    def forward(self, hidden_BSE: Tensor, cos_SD: Tensor, sin_SD: Tensor, pieces_or_partition: Tensor | Partition) -> Tensor:
        batch, sequence, _ = hidden_BSE.shape
        query_BSHD = self.query(hidden_BSE).view(batch, sequence, -1, self.head_dim)
        key_BSKD = self.key(hidden_BSE).view(batch, sequence, -1, self.head_dim)
        value_BSKD = self.value(hidden_BSE).view(batch, sequence, -1, self.head_dim)
        if self.query_norm is not None and self.key_norm is not None:
            query_BSHD, key_BSKD = self.query_norm(query_BSHD), self.key_norm(key_BSKD)
        query_BHSD = rotate(query_BSHD.transpose(1, 2), cos_SD, sin_SD)
        key_BKSD = rotate(key_BSKD.transpose(1, 2), cos_SD, sin_SD)
        value_BKSD = value_BSKD.transpose(1, 2)
        if isinstance(pieces_or_partition, Partition):
            assert self.context is not None
            attended_BHSD = self.context.attend(query_BHSD, key_BKSD, value_BKSD, pieces_or_partition, self.scale)
        else:
            attended_BHSD = attend(query_BHSD, key_BKSD, value_BKSD, pieces_or_partition, self.scale)
        merged: Tensor = self.output(attended_BHSD.transpose(1, 2).reshape(batch, sequence, -1))
        return merged
