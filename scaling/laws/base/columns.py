"""Columns of runs as arrays, and what laws of size and tokens share."""

from collections.abc import Mapping
from typing import Any

from scaling.laws.base.dual import Array

Columns = Mapping[str, Array]
"""A column's name -> its values, (runs,) or (batch, runs)."""

SIZE_COLUMNS = ("parameters", "tokens", "flops", "tokens_per_parameter")
"""Any two of them say the others: flops = 6 parameters tokens."""
SHARES = ("qat_fraction", "error")
"""Columns whose values are shares, from 0 to 1; the numbers of all others are above zero, or not below it:"""
PHASES = ("qat_tokens", "fp_tokens")
"""Tokens of a phase that a run may lack."""
FULL_BITS = 16.0
"""Bits of a number that is not quantized."""


def from_size_and_tokens(parameters: Any, tokens: Any) -> dict[str, Any]:
    """The four `SIZE_COLUMNS`, in their order."""
    return {
        "parameters": parameters,
        "tokens": tokens,
        "flops": 6.0 * parameters * tokens,
        "tokens_per_parameter": tokens / parameters,
    }


def one_ratio(columns: Columns) -> list[str]:
    """A remark where every run has about the same tokens per parameter."""
    ratio = columns["tokens_per_parameter"] if "tokens_per_parameter" in columns else columns["tokens"] / columns["parameters"]
    if ratio.max() > 1.05 * ratio.min():
        return []
    return [
        f"all runs have about {ratio.mean():.3g} tokens per parameter: the effects of size and data cannot be separated. "
        "Only forecasts at that ratio mean anything; add runs at another one"
    ]


def one_size(columns: Columns) -> list[str]:
    """A remark where every run has about the same size."""
    size = columns.get("parameters")
    if size is None or size.max() > 1.05 * size.min():
        return []
    return [f"all runs have one size ({size.mean():.4g} parameters): how loss depends on size is a guess"]


def one_size_or_ratio(columns: Columns) -> list[str]:
    """Both remarks: what a loss law of size and tokens asks of its runs."""
    return one_size(columns) + one_ratio(columns)
