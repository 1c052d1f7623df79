"""Quantization-aware training: how much of a run it should take. Standard library only.

Source: "Compute-Optimal Quantization-Aware Training", arXiv 2509.22935, whose formula and constant are known here from one set
of notes on it; they agree with the ranges that its authors state (10 to 15 % for small budgets, 55 % and more for large ones).
"""

import math

PAPER_A = 6.7297
"""The paper's one constant for all sizes and widths (mean absolute error of f*: 0.091)."""


def optimal_fraction(tokens: float, parameters: float, bits: float, a: float = PAPER_A) -> float:
    """f*, the share of a run's tokens that should be quantization-aware: exp(-a / ln S), S = tokens / (parameters bits / 8).

    Zero where S, the tokens per byte of parameters, is not above 1. `tokens` is the whole run's; `parameters` counts all of
    them, as the notes have it.

    Raises:
        ValueError: a number is not above zero.
    """
    if not (tokens > 0 and parameters > 0 and bits > 0 and a > 0):
        raise ValueError(f"tokens, parameters, bits and a must be above 0, not {tokens}, {parameters}, {bits}, {a}")
    log_ratio = math.log(tokens) - math.log(parameters * bits / 8.0)
    return math.exp(-a / log_ratio) if log_ratio > 0 else 0.0
