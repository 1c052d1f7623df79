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
class Rope:
    """The rotary embedding's frequencies: theta^(-2i / head_dim), the low ones divided by up to `factor` (Llama 3.1)."""

    theta: float
    """base"""
    factor: float = 1.0
    """divides the frequencies that turn fewer than `low` times over `original_sequence` tokens; 1: none"""
    low: float = 1.0
    high: float = 4.0
    """frequencies that turn more often stay as they are; between `low` and `high` the division grows smoothly"""
    original_sequence: int = 8192


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A Llama-family decoder: its sizes and its constants."""

    shape: ModelShape
    rope: Rope
    norm_eps: float
    """epsilon of RMSNorm"""
    multipliers: Multipliers
