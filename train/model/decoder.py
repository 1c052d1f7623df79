"""A Llama-family decoder in plain PyTorch, without any parallelism.

Shape suffixes: B batch, S sequence (under context parallelism this rank's part of it), E hidden size, V vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.attention.pieces import within_documents
from parallel.attention.plan import encode
from parallel.compose import StageModel
from parallel.context.partition import Partition
from parallel.context.protocol import ContextParallel
from parallel.tensor import Role
from quant.method import LowPrecisionModule
from train.model.architecture import Architecture
from train.model.attention import Attention, rotary_angles
from train.model.ffn import FEED_FORWARDS


def scaled(tensor: Tensor, multiplier: float) -> Tensor:
    """`multiplier` x `tensor`, without an operation if it is 1."""
    return tensor if multiplier == 1.0 else tensor * multiplier


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream. Input and output (B, S, E)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        shape, norm_eps = architecture.shape, architecture.norm_eps
        self.multiplier = architecture.multipliers.residual
        self.attention_norm = nn.RMSNorm(shape.hidden_size, eps=norm_eps)
        self.attention = Attention(shape, norm_eps, architecture.multipliers.attention)
        self.ffn_norm = nn.RMSNorm(shape.hidden_size, eps=norm_eps)
        self.ffn = FEED_FORWARDS[shape.ffn](shape)

    def forward(self, hidden_BSE: Tensor, cos_SD: Tensor, sin_SD: Tensor, pieces_or_partition: Tensor | Partition) -> Tensor:
        attended_BSE: Tensor = self.attention(self.attention_norm(hidden_BSE), cos_SD, sin_SD, pieces_or_partition)
        hidden_BSE = hidden_BSE + scaled(attended_BSE, self.multiplier)
        ffn_BSE: Tensor = self.ffn(self.ffn_norm(hidden_BSE))
        return hidden_BSE + scaled(ffn_BSE, self.multiplier)


class TiedHead(nn.Module):
    """Logits from the embedding table, which is an argument: the head has no parameters."""

    def forward(self, hidden_BSE: Tensor, table_VE: Tensor) -> Tensor:
        return F.linear(hidden_BSE, table_VE)


def table_of(embedding: nn.Embedding) -> Tensor:
    """The table that an embedding uses, quantized if its weight is."""
    return embedding.used_weight() if isinstance(embedding, LowPrecisionModule) else embedding.weight


class Decoder(StageModel):
    """Token ids (B, S) to logits (B, S, V), or a stage of it: consecutive layers, with hidden states (B, S, E) in or out.

    `blocks` is keyed by layer number, so that parameters have the same names in a stage as in the whole model.
    """

    def __init__(self, architecture: Architecture, *, layers: range, first: bool, last: bool) -> None:
        """The `first` stage takes tokens, the `last` gives logits."""
        super().__init__()
        shape, norm_eps = architecture.shape, architecture.norm_eps
        self.shape, self.rope_theta, self.first, self.last = shape, architecture.rope_theta, first, last
        self.multipliers = architecture.multipliers
        self.context: ContextParallel | None = None
        has_table = first or (last and shape.tie_embeddings)
        self.embedding = nn.Embedding(shape.vocab_size, shape.hidden_size) if has_table else None
        self.blocks = nn.ModuleDict({str(layer): Block(architecture) for layer in layers})
        self.norm = nn.RMSNorm(shape.hidden_size, eps=norm_eps) if last else None
        untied = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False) if last and not shape.tie_embeddings else None
        self.head = TiedHead() if last and shape.tie_embeddings else untied

    def block_list(self) -> Sequence[nn.Module]:
        """See `StageModel`."""
        return list(self.blocks.values())

    def tensor_roles(self) -> dict[str, Role]:
        """See `StageModel`."""
        roles: dict[str, Role] = {
            "blocks.*.attention_norm": "norm",
            "blocks.*.attention": "gather",
            **{f"blocks.*.attention.{name}": "column" for name in ("query", "key", "value")},
            **{f"blocks.*.attention.{name}_norm": "head_norm" for name in ("query", "key") if self.shape.qk_norm},
            "blocks.*.attention.output": "row",
            "blocks.*.ffn_norm": "norm",
            "blocks.*.ffn": "gather",
            **{f"blocks.*.ffn.{name}": "column" for name in FEED_FORWARDS[self.shape.ffn].columns},
            "blocks.*.ffn.down": "row",
        }
        if self.embedding is not None:
            roles["embedding"] = "vocabulary"
        if self.last:
            roles |= {"norm": "norm", "head": "tied_head" if self.shape.tie_embeddings else "head"}
        return roles

    def share_sequences(self, context: ContextParallel) -> None:
        """See `StageModel`."""
        self.context = context
        for module in self.modules():
            if isinstance(module, Attention):
                module.context = context

    def forward(self, inputs: Tensor, document_BS: Tensor) -> Tensor:
        # Under context parallelism `inputs` is this rank's part, but `document_BS` is whole: the partition depends on it.
        # Documents stay on the host: who sees whom is worked out there once per micro-batch, and no layer waits for a device.
        document_BS = document_BS.cpu()
        hidden_BSE: Tensor = inputs
        if self.first and self.embedding is not None:
            hidden_BSE = scaled(self.embedding(inputs), self.multipliers.embedding)
        # Angles at least in fp32: bf16 cannot distinguish neighbouring positions beyond 256.
        angle_dtype = torch.promote_types(hidden_BSE.dtype, torch.float32)
        pieces_or_partition: Tensor | Partition
        if self.context is None:
            pieces_or_partition = encode(within_documents(document_BS))
            positions_S = torch.arange(document_BS.shape[1])
        else:
            pieces_or_partition = self.context.partition(document_BS)
            positions_S = self.context.positions(pieces_or_partition)
        angles_SD = rotary_angles(positions_S.to(hidden_BSE.device), self.shape.head_dim, self.rope_theta, angle_dtype)
        cos_SD, sin_SD = angles_SD.cos(), angles_SD.sin()
        for block in self.blocks.values():
            hidden_BSE = block(hidden_BSE, cos_SD, sin_SD, pieces_or_partition)
        if self.norm is None or self.head is None:
            return hidden_BSE
        hidden_BSE = scaled(self.norm(hidden_BSE), self.multipliers.logit)  # cheaper than scaling the logits
        table = (table_of(self.embedding),) if isinstance(self.head, TiedHead) and self.embedding is not None else ()
        logits_BSV: Tensor = self.head(hidden_BSE, *table)
        return logits_BSV
