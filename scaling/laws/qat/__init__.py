"""What the laws of quantization-aware training share: the reported constant, tokens per byte. Imports no numpy.

Source: "Compute-Optimal Quantization-Aware Training", arXiv 2509.22935. Its formulas are known here from notes on it, not from
its full text: the direct law and its constant agree with the ranges its authors state; of the loss law the base's letters and
the sign of xi are open, so every exponent of the interaction may be negative in a fit.
"""

import math
from typing import Any

PAPER_A = 6.7297
"""The constant of the direct law as it is reported, one number for all sizes and widths (mean absolute error of f 0.091)."""


def optimal_fraction(tokens: float, parameters: float, bits: float, a: float = PAPER_A) -> float:
    """The share of a run's tokens that should be quantization-aware: exp(-a / ln S), S = tokens / (parameters bits / 8).

    Zero where S, the tokens per byte of parameters, is not above 1. `tokens` is the whole run's.

    Raises:
        ValueError: a number is not above zero.
    """
    if not (tokens > 0 and parameters > 0 and bits > 0 and a > 0):
        raise ValueError(f"tokens, parameters, bits and a must be above 0, not {tokens}, {parameters}, {bits}, {a}")
    log_ratio = math.log(tokens) - math.log(parameters * bits / 8.0)
    return math.exp(-a / log_ratio) if log_ratio > 0 else 0.0


def tokens_per_byte(tokens: Any, parameters: Any, bits: Any) -> Any:
    """S: tokens for every byte that the parameters take at this width."""
    return tokens / (parameters * bits / 8.0)
