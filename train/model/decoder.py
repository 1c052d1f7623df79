"""A Llama-family decoder in plain PyTorch, without any parallelism.

Shape suffixes: B batch, S sequence (under context parallelism this rank's part of it), E hidden size, V vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

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
from train.model.loss import loss_sums


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


class Output(nn.Module):
    """Hidden states and the head's weight to logits or, with targets, to sums of the loss. It has no parameters of its own."""

    def __init__(self, z_loss: float) -> None:
        super().__init__()
        self.z_loss = z_loss

    def forward(self, hidden_BSE: Tensor, weight_VE: Tensor, targets_BS: Tensor | None) -> Tensor:
        group = None
        if isinstance(weight_VE, DTensor):  # split by vocabulary
            group, weight_VE = weight_VE.device_mesh.get_group(), weight_VE.to_local()
        if targets_BS is None:
            return F.linear(hidden_BSE, weight_VE)
        return loss_sums(hidden_BSE, weight_VE, targets_BS, z_loss=self.z_loss, group=group)


class Decoder(StageModel):
    """Token ids (B, S) to the sums of `train.model.loss` if it is given targets (B, S), else to logits (B, S, V).

    Or a stage of it: consecutive layers, with hidden states (B, S, E) in or out.

    `blocks` is keyed by layer number, so that parameters have the same names in a stage as in the whole model.
    """

    def __init__(self, architecture: Architecture, *, layers: range, first: bool, last: bool, z_loss: float = 0.0) -> None:
        """The `first` stage takes tokens, the `last` has the loss, with a term of weight `z_loss`."""
        super().__init__()
        shape, norm_eps = architecture.shape, architecture.norm_eps
        self.shape, self.rope, self.first, self.last = shape, architecture.rope, first, last
        self.multipliers = architecture.multipliers
        self.context: ContextParallel | None = None
        has_table = first or (last and shape.tie_embeddings)
        # Without torch's initial values, which nobody uses: to draw them on the meta device imports the compiler, a second.
        table = torch.empty(shape.vocab_size, shape.hidden_size) if has_table else None
        self.embedding = None if table is None else nn.Embedding.from_pretrained(table, freeze=False)
        self.blocks = nn.ModuleDict({str(layer): Block(architecture) for layer in layers})
        self.norm = nn.RMSNorm(shape.hidden_size, eps=norm_eps) if last else None
        has_head = last and not shape.tie_embeddings
        self.head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False) if has_head else None
        self.output = Output(z_loss) if last else None

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
            roles |= {"norm": "norm", "output": "output"}
        if self.head is not None:
            roles["head"] = "column"
        return roles

    def share_sequences(self, context: ContextParallel) -> None:
        """See `StageModel`."""
        self.context = context
        for module in self.modules():
            if isinstance(module, Attention):
                module.context = context

    def forward(self, inputs: Tensor, document_BS: Tensor, targets_BS: Tensor | None = None) -> Tensor:
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
        angles_SD = rotary_angles(positions_S.to(hidden_BSE.device), self.shape.head_dim, self.rope, angle_dtype)
        cos_SD, sin_SD = angles_SD.cos(), angles_SD.sin()
        for block in self.blocks.values():
            hidden_BSE = block(hidden_BSE, cos_SD, sin_SD, pieces_or_partition)
        if self.norm is None or self.output is None:
            return hidden_BSE
        hidden_BSE = scaled(self.norm(hidden_BSE), self.multipliers.logit)  # cheaper than scaling the logits
        if isinstance(self.head, LowPrecisionModule):
            hidden_BSE = self.head.used_input(hidden_BSE)
        result: Tensor = self.output(hidden_BSE, self._head_weight(), targets_BS)
        return result

    def _head_weight(self) -> Tensor:
        """What hidden states are multiplied with: the head's weight or, if tied, the embedding's table."""
        owner = self.head if self.head is not None else self.embedding
        assert owner is not None
        return owner.used_weight() if isinstance(owner, LowPrecisionModule) else owner.weight
