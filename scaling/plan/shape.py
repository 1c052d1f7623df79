"""The shape of a decoder of so many parameters, embeddings included."""

import math
from collections.abc import Mapping
from typing import Any

from common.errors import UserError

DEFAULT_VOCABULARY = 32_768
_DEFAULT_ASPECT, _DEFAULT_FFN_RATIO = 64.0, 8.0 / 3.0
_SMALL = 1e7
"""parameters up to which any shape is common"""
_ASPECTS = (64.0, 192.0)
"""width over layers of what people build above that: GPT-3 and Llama 3 lie at 64 to 128"""


def shape_for(parameters: float, context: Mapping[str, Any], most: float | None = None) -> dict[str, int]:
    """The decoder whose parameters, embeddings included, come nearest, shaped like the fitted runs (or d = 64 layers), within
    what people build.

    Heads are as wide as the fitted runs' (or 64, 128 from a width of 2,048 on, as where the runs' are narrower than 64)
    where a multiple of 8 divides the width so, and
    their number is one that splits over devices. It has no more than `most` parameters.

    Raises:
        UserError: no decoder is so small.
    """
    config = context.get("config", {})
    aspect, ratio = context.get("aspect", _DEFAULT_ASPECT), context.get("ffn_ratio", _DEFAULT_FFN_RATIO)
    vocabulary = config.get("model.vocab_size", DEFAULT_VOCABULARY)
    rest: dict[str, Any] = {
        "vocab_size": vocabulary,
        "tie_embeddings": config.get("model.tie_embeddings", False),
        "ffn": config.get("model.ffn", "swiglu"),
        "qk_norm": config.get("model.qk_norm", True),
        "qkv_bias": config.get("model.qkv_bias", False),
    }
    if parameters > _SMALL:  # the family of tiny runs ends here: two layers of width 32 are no advice for a hundred layers
        aspect = min(max(aspect, _ASPECTS[0]), _ASPECTS[1])
    step = 8 if parameters < _SMALL else 64
    best: tuple[float, dict[str, int]] | None = None
    for width in range(step, 65_536 + 1, step):
        heads = _heads(width, context.get("head_dim"))
        ffn = max(step, step * round(ratio * width / step))
        shape = {"hidden_size": width, "num_heads": heads, "num_kv_heads": heads, "ffn_size": ffn}
        empty, one = (decoder_parameters(**shape | rest, num_layers=layers, head_dim=width // heads) for layers in (0, 1))
        if empty > 1.2 * parameters and best is not None:
            break
        layers = max(1, round((parameters - empty) / (one - empty)))
        if most is not None and empty + layers * (one - empty) > most:
            layers -= 1
        if layers < 1:
            continue
        count = empty + layers * (one - empty)
        score = abs(math.log(count / parameters)) + 0.05 * abs(math.log(width / layers / aspect))
        score += 0.02 * _oddness(width, heads, context.get("head_dim"))
        if best is None or score < best[0]:
            best = score, {"num_layers": layers, **shape}
    if best is None or best[0] > math.log(1000.0):
        raise UserError(f"no decoder with a vocabulary of {vocabulary} is as small as {parameters:.3g} parameters")
    return best[1]


def decoder_parameters(
    *,
    num_layers: int,
    hidden_size: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    ffn_size: int,
    vocab_size: int,
    ffn: str,
    tie_embeddings: bool,
    qk_norm: bool,
    qkv_bias: bool = False,
) -> int:
    """All parameters of the trainer's decoder, as its own shape record counts them (a test compares both)."""
    attention = 2 * hidden_size * head_dim * (num_heads + num_kv_heads)
    biases = head_dim * (num_heads + 2 * num_kv_heads) if qkv_bias else 0
    vectors = 2 * hidden_size + (2 * head_dim if qk_norm else 0) + biases
    block = attention + (3 if ffn == "swiglu" else 2) * hidden_size * ffn_size + vectors
    return (1 if tie_embeddings else 2) * vocab_size * hidden_size + num_layers * block + hidden_size


def _wanted_head(width: int, fitted: int | None) -> int:
    if fitted and (width < 512 or 64 <= fitted <= 256):
        return fitted
    return 128 if width >= 2048 else 64 if width >= 256 else 16


def _heads(width: int, fitted: int | None) -> int:
    """The number of heads: as wide as wanted where the width, a multiple of 8, allows it."""
    goal = _wanted_head(width, fitted)
    if width % goal == 0:
        return width // goal
    sizes = (size for size in range(8, width + 1, 8) if width % size == 0)
    return width // min(sizes, key=lambda size: abs(math.log(size / goal)))


def _oddness(width: int, heads: int, fitted: int | None) -> float:
    """How far heads are from what people build: of another width than wanted, or so many that few device counts divide them."""
    unequal = abs(math.log(width / heads / _wanted_head(width, fitted)))
    divisor = 1 if heads <= 4 else 2 if heads <= 16 else 4 if heads <= 64 else 8
    narrow = fitted is None and width < 256  # in so small a model any width of head is common
    return (0.0 if narrow else 10.0 * unequal) + 2.0 * (heads % divisor != 0)
