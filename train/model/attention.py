"""Grouped-query attention with rotary positions and a document mask.

Shape suffixes: B batch, S sequence (under context parallelism this rank's part of it), E hidden size, H heads, K key/value
heads, D head_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.context.partition import Partition
from parallel.context.protocol import ContextParallel
from parallel.shape import ModelShape


def rotary_angles(positions_S: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Tensor:
    """Angles of the rotary embedding, shape (S, D / 2), in `dtype` (Su et al., RoFormer, arXiv 2104.09864, eq. 15)."""
    exponents = torch.arange(0, head_dim, 2, device=positions_S.device, dtype=dtype) / head_dim
    return torch.outer(positions_S.to(dtype), theta**-exponents)


def rotate(heads_BHSD: Tensor, cos_SD: Tensor, sin_SD: Tensor) -> Tensor:
    """Rotate the pairs of channels (i, i + D/2), as Hugging Face's Llama pairs them. cos and sin have shape (S, D/2)."""
    first, second = heads_BHSD.to(cos_SD.dtype).chunk(2, dim=-1)
    rotated = torch.cat((first * cos_SD - second * sin_SD, second * cos_SD + first * sin_SD), dim=-1)
    return rotated.to(heads_BHSD.dtype)


def document_mask(document_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive mask, shape (B, 1, S, S): 0 where a query may attend (its own document, not the future), else -inf.

    It is additive because attention kernels would convert a boolean mask anew in every layer.
    """
    same_BSS = document_BS[:, :, None] == document_BS[:, None, :]
    allowed_BSS = same_BSS.tril()
    mask = torch.zeros(allowed_BSS.shape, dtype=dtype, device=document_BS.device)
    return mask.masked_fill_(~allowed_BSS, float("-inf"))[:, None]


class Attention(nn.Module):
    """Causal self-attention within documents. Input and output (B, S, E).

    `mask_or_partition` is the mask for whole sequences. Under context parallelism it is the partition of the sequences over
    ranks, and `context` computes the attention.
    """

    def __init__(self, shape: ModelShape, norm_eps: float, scale: float) -> None:
        """`scale` multiplies the products of queries and keys."""
        super().__init__()
        self.scale = scale
        self.context: ContextParallel | None = None
        self.num_heads, self.num_kv_heads, self.head_dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        self.query = nn.Linear(shape.hidden_size, shape.num_heads * shape.head_dim, bias=False)
        self.key = nn.Linear(shape.hidden_size, shape.num_kv_heads * shape.head_dim, bias=False)
        self.value = nn.Linear(shape.hidden_size, shape.num_kv_heads * shape.head_dim, bias=False)
        self.output = nn.Linear(shape.num_heads * shape.head_dim, shape.hidden_size, bias=False)
        self.query_norm = nn.RMSNorm(shape.head_dim, eps=norm_eps) if shape.qk_norm else None
        self.key_norm = nn.RMSNorm(shape.head_dim, eps=norm_eps) if shape.qk_norm else None

    def forward(self, hidden_BSE: Tensor, cos_SD: Tensor, sin_SD: Tensor, mask_or_partition: Tensor | Partition) -> Tensor:
        batch, sequence, _ = hidden_BSE.shape
        query_BSHD = self.query(hidden_BSE).view(batch, sequence, -1, self.head_dim)
        key_BSKD = self.key(hidden_BSE).view(batch, sequence, -1, self.head_dim)
        value_BSKD = self.value(hidden_BSE).view(batch, sequence, -1, self.head_dim)
        if self.query_norm is not None and self.key_norm is not None:
            query_BSHD, key_BSKD = self.query_norm(query_BSHD), self.key_norm(key_BSKD)
        query_BHSD = rotate(query_BSHD.transpose(1, 2), cos_SD, sin_SD)
        key_BKSD = rotate(key_BSKD.transpose(1, 2), cos_SD, sin_SD)
        value_BKSD = value_BSKD.transpose(1, 2)
        if isinstance(mask_or_partition, Partition):
            assert self.context is not None
            attended_BHSD = self.context.attend(query_BHSD, key_BKSD, value_BKSD, mask_or_partition, self.scale)
        else:
            attended_BHSD = F.scaled_dot_product_attention(
                query_BHSD,
                key_BKSD,
                value_BKSD,
                attn_mask=mask_or_partition,
                enable_gqa=self.num_kv_heads != self.num_heads,
                scale=self.scale,
            )
        merged: Tensor = self.output(attended_BHSD.transpose(1, 2).reshape(batch, sequence, -1))
        return merged
