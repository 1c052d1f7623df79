"""What a decoder computes with besides its weights. Imports no torch."""

from dataclasses import dataclass

from parallel.shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class Multipliers:
    """Constants in the forward pass. They come from the whole model's widths, never from a rank's part of them."""

    embedding: float
    """times the embedding's output"""
    residual: float
    """times what attention and feed-forward add to the residual stream"""
    attention: float
    """times the products of queries and keys"""
    logit: float
    """times the logits"""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A Llama-family decoder: its sizes and its constants."""

    shape: ModelShape
    rope_theta: float
    """base of the rotary embedding"""
    norm_eps: float
    """epsilon of RMSNorm"""
    multipliers: Multipliers
