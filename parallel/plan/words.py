"""What a user types for the planner, as values: a model, a layout. Standard library only, and the values of `configs/`."""

from typing import Any, get_args

from common.config_files import group_options, option_values
from common.errors import UserError
from common.words import nearest
from parallel.names import Recompute, ScheduleName
from parallel.plan.job import CHOICE_KEYS
from parallel.shape import FEED_FORWARD_MATRICES, ModelShape

MODEL_KEYS = (
    "num_layers",
    "hidden_size",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "ffn_size",
    "vocab_size",
    "ffn",
    "tie_embeddings",
    "qk_norm",
    "qkv_bias",
)
_CHOICES: dict[str, tuple[str, ...]] = {
    "recompute": get_args(Recompute),
    "pipeline_schedule": get_args(ScheduleName),
    "ffn": tuple(FEED_FORWARD_MATRICES),
}
_FLAGS = ("tie_embeddings", "qk_norm", "qkv_bias", "sequence_parallel")
LAYOUT_KEYS = tuple(key for key in CHOICE_KEYS)


def model_shape(words: str) -> ModelShape:
    """The model that `--model` means: a name of `configs/model/`, or `num_layers=..,hidden_size=..,...`.

    Raises:
        UserError: an unknown name or key, a missing size, sizes that do not divide.
    """
    if "=" in words:
        values = pairs(words, MODEL_KEYS, "--model")
    else:
        known = group_options()["model"]
        if words not in known:
            near = nearest(words, known)
            hint = f"; did you mean '{near}'?" if near else ""
            raise UserError(
                f"--model {words}: not known{hint} (known: {', '.join(known)}; or num_layers=..,hidden_size=..,...)"
            )
        values = {key: value for key, value in option_values("model", words).items() if key in MODEL_KEYS}
    values = {key: value for key, value in values.items() if value is not None}
    if missing := [key for key in ("num_layers", "hidden_size", "num_heads", "ffn_size", "vocab_size") if key not in values]:
        raise UserError(
            f"--model lacks {', '.join(missing)}: type --model {','.join([words, *(f'{key}=..' for key in missing)])}"
        )
    hidden, heads = values["hidden_size"], values["num_heads"]
    if "head_dim" not in values and hidden % heads:
        near_heads = next(
            count for count in sorted(range(1, hidden + 1), key=lambda count: abs(count - heads)) if hidden % count == 0
        )
        raise UserError(
            f"--model: num_heads={heads} does not divide hidden_size={hidden}; the nearest that does: num_heads={near_heads}"
        )
    shape = {"head_dim": hidden // heads, "num_kv_heads": heads, "ffn": "swiglu", "tie_embeddings": False, "qk_norm": False}
    result = ModelShape(**{**shape, **values})
    if result.num_heads % result.num_kv_heads:
        raise UserError(f"--model: num_kv_heads={result.num_kv_heads} does not divide num_heads={result.num_heads}")
    return result


def layout_words(words: str | None) -> dict[str, Any]:
    """What `--layout` fixes.

    Raises:
        UserError: an unknown key or an impossible value.
    """
    return pairs(words, LAYOUT_KEYS, "--layout") if words else {}


def pairs(words: str, known: tuple[str, ...], option: str) -> dict[str, Any]:
    """`a=1,b=none` as values; every number is an integer above 0 (zero may be 0).

    Raises:
        UserError: not of that form, an unknown key, a value that the key cannot have.
    """
    values: dict[str, Any] = {}
    for word in words.split(","):
        key, equals, text = word.strip().partition("=")
        if not equals or not text:
            raise UserError(f"{option}: '{word.strip()}' is not KEY=VALUE (keys: {', '.join(known)})")
        if key not in known:
            near = nearest(key, known)
            hint = f"; did you mean '{near}'?" if near else ""
            raise UserError(f"{option}: no key '{key}'{hint} (keys: {', '.join(known)})")
        values[key] = _value(key, text, option)
    return values


def _value(key: str, text: str, option: str) -> Any:
    if choices := _CHOICES.get(key):
        if text not in choices:
            raise UserError(f"{option}: {key}={text} is not one of {', '.join(choices)}")
        return text
    if key in _FLAGS:
        if text not in ("true", "false"):
            raise UserError(f"{option}: {key}={text} is not true or false")
        return text == "true"
    if not text.isdigit() or (int(text) == 0 and key != "zero"):
        raise UserError(f"{option}: {key}={text} is not a whole number above 0")
    return int(text)
