"""The sizes and constants of a decoder. Imports no torch."""

from dataclasses import dataclass

from parallel.shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class Multipliers:
    """Constant factors in the forward pass. They follow from the widths of the whole model, not of a rank's part."""

    embedding: float
    """factor of the embedding's output"""
    residual: float
    """factor of what attention and feed-forward add to the residual stream"""
    attention: float
    """factor of the products of queries and keys"""
    logit: float
    """factor of the logits"""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A Llama-family decoder: its sizes and its constants."""

    shape: ModelShape
    rope_theta: float
    """base of the rotary embedding"""
    norm_eps: float
    """epsilon of RMSNorm"""
    multipliers: Multipliers
