"""The kinds of feed-forward of a block.

Shape suffixes: B batch, S sequence, E hidden size.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from parallel.shape import FeedForwardName, ModelShape


class FeedForward(nn.Module):
    """From (B, S, E) to (B, S, E). `down` projects back into the residual stream."""

    columns: tuple[str, ...]
    """the linear layers of the input: tensor parallelism splits them by output, and `down` by input"""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        for name in self.columns:
            self.add_module(name, nn.Linear(shape.hidden_size, shape.ffn_size, bias=False))
        self.down = nn.Linear(shape.ffn_size, shape.hidden_size, bias=False)


class SwiGLU(FeedForward):
    """down(silu(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202)."""

    columns = ("gate", "up")
    gate: nn.Linear
    up: nn.Linear

    def forward(self, hidden_BSE: Tensor) -> Tensor:
        out_BSE: Tensor = self.down(F.silu(self.gate(hidden_BSE)) * self.up(hidden_BSE))
        return out_BSE


class Gelu(FeedForward):
    """down(gelu(up(x)))."""

    columns = ("up",)
    up: nn.Linear

    def forward(self, hidden_BSE: Tensor) -> Tensor:
        out_BSE: Tensor = self.down(F.gelu(self.up(hidden_BSE)))
        return out_BSE


FEED_FORWARDS: dict[FeedForwardName, type[FeedForward]] = {"swiglu": SwiGLU, "gelu": Gelu}
