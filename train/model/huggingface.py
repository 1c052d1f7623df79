"""Hugging Face's format: its names for tensors and settings, and checks of a folder of weights. Imports no torch.

Export and `model.initial_weights` share these tables. Of a folder only JSON is read: `config.json`, and the headers of the
safetensors files.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from common.errors import UserError
from common.words import hydra_word
from parallel.shape import ModelShape
from train.model.architecture import Architecture, Rope

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# This decoder has Llama's RMSNorm, rotary pairing and SwiGLU. With qk_norm it also has Qwen3's norm of queries and keys: per
# head, before the rotation. With qkv_bias it has Qwen2's biases.
ARCHITECTURES = {  # by (qk_norm, qkv_bias)
    (False, False): ("LlamaForCausalLM", "llama"),
    (True, False): ("Qwen3ForCausalLM", "qwen3"),
    (False, True): ("Qwen2ForCausalLM", "qwen2"),
}
_FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
_SHOWN = 3  # names in a message

_BIASED = ("attention.query", "attention.key", "attention.value")
# Model key -> key of config.json.
_SIZES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn_size": "intermediate_size",
    "vocab_size": "vocab_size",
}


@dataclass(frozen=True)
class Place:
    """The name and shape of a parameter in Hugging Face's format."""

    name: str
    shape: tuple[int, ...]


def places(shape: ModelShape) -> dict[str, Place]:
    """The parameters of a SwiGLU decoder, by name in the model's order, with their places in Hugging Face's format."""
    hidden, queries, keys = shape.hidden_size, shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    block = {
        "attention_norm": ("input_layernorm", (hidden,)),
        "attention.query": ("self_attn.q_proj", (queries, hidden)),
        "attention.key": ("self_attn.k_proj", (keys, hidden)),
        "attention.value": ("self_attn.v_proj", (keys, hidden)),
        "attention.output": ("self_attn.o_proj", (hidden, queries)),
        "attention.query_norm": ("self_attn.q_norm", (shape.head_dim,)),
        "attention.key_norm": ("self_attn.k_norm", (shape.head_dim,)),
        "ffn_norm": ("post_attention_layernorm", (hidden,)),
        "ffn.gate": ("mlp.gate_proj", (shape.ffn_size, hidden)),
        "ffn.up": ("mlp.up_proj", (shape.ffn_size, hidden)),
        "ffn.down": ("mlp.down_proj", (hidden, shape.ffn_size)),
    }
    if not shape.qk_norm:
        del block["attention.query_norm"], block["attention.key_norm"]
    biases = {name: (block[name][0], block[name][1][:1]) for name in _BIASED} if shape.qkv_bias else {}
    by_name = {"embedding.weight": Place("model.embed_tokens.weight", (shape.vocab_size, hidden))}
    for layer in range(shape.num_layers):
        for name, (hf_name, sizes) in block.items():
            by_name[f"blocks.{layer}.{name}.weight"] = Place(f"model.layers.{layer}.{hf_name}.weight", sizes)
        for name, (hf_name, sizes) in biases.items():
            by_name[f"blocks.{layer}.{name}.bias"] = Place(f"model.layers.{layer}.{hf_name}.bias", sizes)
    by_name["norm.weight"] = Place("model.norm.weight", (hidden,))
    if not shape.tie_embeddings:
        by_name["head.weight"] = Place("lm_head.weight", (shape.vocab_size, hidden))
    return by_name


def folded(name: str, architecture: Architecture) -> float:
    """The factor of a parameter with which a decoder without multipliers computes the same as `architecture`.

    A tied table includes the embedding's multiplier; the norm before the head divides by it.
    """
    shape, multipliers = architecture.shape, architecture.multipliers
    table, head = ("embedding.weight", "norm.weight" if shape.tie_embeddings else "head.weight")
    query = multipliers.attention / (1 / math.sqrt(shape.head_dim))
    return {
        f"attention.{'query_norm' if shape.qk_norm else 'query'}.weight": query,
        "attention.query.bias": 1.0 if shape.qk_norm else query,
        "attention.output.weight": multipliers.residual,
        "ffn.down.weight": multipliers.residual,
        table: multipliers.embedding,
        head: multipliers.logit / (multipliers.embedding if shape.tie_embeddings else 1.0),
    }.get(re.sub(r"^blocks\.\d+\.", "", name), 1.0)


def describe(architecture: Architecture, *, init_std: float, end_of_text: int, sequence: int, dtype: str) -> dict[str, Any]:
    """`config.json` of a model. `dtype` is torch's name of its parameters' dtype, `sequence` the length it was trained on.

    Raises:
        UserError: no architecture of Hugging Face computes the same.
    """
    model = architecture.shape
    if model.ffn != "swiglu":
        raise UserError(
            f"the run has model.ffn={model.ffn}: no architecture of Hugging Face's computes this decoder, only the one with "
            "model.ffn=swiglu"
        )
    if not model.qk_norm and model.hidden_size % model.num_heads:
        raise UserError(
            f"the run's model.hidden_size={model.hidden_size} is not a multiple of its model.num_heads={model.num_heads}, "
            "which Hugging Face's Llama refuses; only with model.qk_norm=true is there an architecture for such sizes (Qwen3)"
        )
    if (model.qk_norm, model.qkv_bias) not in ARCHITECTURES:
        raise UserError("the run has model.qk_norm=true and model.qkv_bias=true: no architecture of Hugging Face's has both")
    name, model_type = ARCHITECTURES[model.qk_norm, model.qkv_bias]
    rope = _stored_rope(architecture.rope)
    return {
        "architectures": [name],
        "model_type": model_type,
        **{hf_key: getattr(model, key) for key, hf_key in _SIZES.items()},
        "hidden_act": "silu",
        **({} if model.qkv_bias else {"attention_bias": False}),
        "attention_dropout": 0.0,
        **({"mlp_bias": False} if model_type == "llama" else {}),
        "rms_norm_eps": architecture.norm_eps,
        "rope_theta": architecture.rope.theta,  # until transformers 4, and the next line too
        **({"rope_scaling": rope} if architecture.rope.factor != 1.0 else {}),
        "rope_parameters": {"rope_theta": architecture.rope.theta, **rope},  # from transformers 5
        "tie_word_embeddings": model.tie_embeddings,
        "max_position_embeddings": sequence,
        "initializer_range": init_std,
        # In training a text follows the end of another.
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": dtype,
    }


# Model key -> key of `rope_parameters`, of the kind "llama3".
_ROPE = {
    "rope_factor": "factor",
    "rope_low_frequency_factor": "low_freq_factor",
    "rope_high_frequency_factor": "high_freq_factor",
    "rope_original_sequence": "original_max_position_embeddings",
}


def _stored_rope(rope: Rope) -> dict[str, Any]:
    if rope.factor == 1.0:
        return {"rope_type": "default"}
    numbers = rope.factor, rope.low, rope.high, rope.original_sequence
    return {"rope_type": "llama3", **dict(zip(_ROPE.values(), numbers, strict=True))}


def problems(folder: Path, architecture: Architecture) -> Iterator[str]:
    """Why a decoder cannot start from the weights in `folder`, one line per reason: first config.json, then the tensors."""
    try:
        stored = _model_keys(_read_json(folder, "config.json"))
        rope = architecture.rope
        numbers = rope.theta, rope.factor, rope.low, rope.high, rope.original_sequence
        wanted = {**asdict(architecture.shape), "norm_eps": architecture.norm_eps}
        wanted |= dict(zip(("rope_theta", *_ROPE), numbers, strict=True))
        if differences := [key for key, value in stored.items() if wanted[key] != value]:
            yield _another_model(stored, wanted, differences)
            return
        yield from _tensor_problems(tensors(folder), architecture.shape)
    except UserError as error:
        yield str(error)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file, from the file's header."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor in the folder's safetensors files, by name.

    Raises:
        UserError: a file is missing, truncated, or not a safetensors file.
    """
    if (folder / SINGLE).exists():
        files = [SINGLE]
    elif (folder / INDEX).exists():
        weight_map = _read_json(folder, INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise UserError(f"{folder / INDEX} has no weight_map from tensors to files")
        files = sorted(set(weight_map.values()))
    else:
        raise UserError(f"there is neither {SINGLE} nor {INDEX} in {folder}; other formats of weights are not read")
    by_name = {}
    for file in files:
        by_name.update(_header(folder / file))
    return by_name


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} (names on a hub are not looked up: download the model first)")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(plain, dict):
        raise UserError(f"{path} is not a JSON object")
    return plain


def _header(path: Path) -> dict[str, StoredTensor]:
    """The tensors that a safetensors file lists in its header. No tensor is read."""
    try:
        path.open("rb").close()  # its error says more than the library's
        with safe_open(path, "np") as stored:
            slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
            return {name: StoredTensor(path, entry.get_dtype(), tuple(entry.get_shape())) for name, entry in slices.items()}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        if "not fully covered" in str(error):
            raise UserError(f"{path} is not as long as its header says: it was not copied whole") from None
        raise UserError(f"{path} is not a safetensors file: {error}") from None


def _model_keys(plain: dict[str, Any]) -> dict[str, Any]:
    """The model keys that correspond to a config.json. Missing settings have transformers' defaults.

    Raises:
        UserError: it has another architecture, or settings that this decoder does not support.
    """
    qk_norm, qkv_bias = _kind(plain)
    unsupported = list(_unsupported(plain))
    if unsupported:
        raise UserError(f"its config.json has {', '.join(unsupported)}, which this decoder does not compute")
    heads, width = plain.get("num_attention_heads"), plain.get("hidden_size")
    sizes = {**plain}
    if qk_norm or qkv_bias:
        sizes = {"num_key_value_heads": 32, **({"head_dim": 128} if qk_norm else {}), **sizes}
    if sizes.get("num_key_value_heads") is None:
        sizes["num_key_value_heads"] = heads
    if sizes.get("head_dim") is None and isinstance(heads, int) and isinstance(width, int) and heads > 0:
        sizes["head_dim"] = width // heads
    keys: dict[str, Any] = {}
    for key, hf_key in _SIZES.items():
        if not _is_size(sizes.get(hf_key)):
            raise UserError(
                f"its config.json has {hf_key}={json.dumps(sizes.get(hf_key))}: it must be a whole number from 1 up"
            )
        keys[key] = sizes[hf_key]
    rope = _rope(plain)
    numbers = {"rope_theta": rope.get("rope_theta", 10_000.0), "norm_eps": plain.get("rms_norm_eps", 1e-6)}
    if _rope_kind(rope) == "llama3":
        numbers |= {key: rope.get(hf_key) for key, hf_key in _ROPE.items()}
    for key, number in numbers.items():
        if not isinstance(number, int | float) or not 0 < number < math.inf:
            raise UserError(f"its config.json has {json.dumps(number)} where model.{key} belongs")
        keys[key] = float(number)
    tied = bool(plain.get("tie_word_embeddings", False))
    if "rope_factor" not in keys:
        keys["rope_factor"] = 1.0
    return {**keys, "ffn": "swiglu", "tie_embeddings": tied, "qk_norm": qk_norm, "qkv_bias": qkv_bias}


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _kind(plain: dict[str, Any]) -> tuple[bool, bool]:
    """(qk_norm, qkv_bias) of the architecture that a config.json names."""
    architectures = plain.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    for kind, (name, model_type) in ARCHITECTURES.items():
        if architecture == name or (architecture is None and plain.get("model_type") == model_type):
            return kind
    readable = ", ".join(name for name, _ in ARCHITECTURES.values())
    other = json.dumps(architecture or plain.get("model_type"))
    raise UserError(f"its config.json names the architecture {other}; {readable} can be read")


def _rope(plain: dict[str, Any]) -> dict[str, Any]:
    """Settings of the rotary embedding, which versions of transformers store in different places."""
    scaling = plain.get("rope_scaling")
    parameters = plain.get("rope_parameters")
    settings = {**(scaling if isinstance(scaling, dict) else {}), **(parameters if isinstance(parameters, dict) else {})}
    if "rope_theta" not in settings and "rope_theta" in plain:
        settings["rope_theta"] = plain["rope_theta"]
    return settings


def _rope_kind(rope: dict[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type", "default"))


def _unsupported(plain: dict[str, Any]) -> Iterator[str]:
    """Settings of a config.json that this decoder does not support."""
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if plain.get(key):
            yield f"{key}={json.dumps(plain[key])}"
    if plain.get("quantization_config"):
        yield "quantization_config"
    if plain.get("hidden_act", "silu") not in ("silu", "swish"):
        yield f"hidden_act={json.dumps(plain['hidden_act'])}"
    rope = _rope(plain)
    kind = _rope_kind(rope)
    if kind not in ("default", "llama3") or (kind == "default" and rope.get("factor", 1.0) != 1.0):
        yield f"rope scaling ({json.dumps(kind)})"
    if any(isinstance(value, dict) for value in rope.values()):
        yield "a rotary embedding for each kind of layer"
    if plain.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0)) not in (None, 1.0):
        yield "partial_rotary_factor"
    kinds = plain["layer_types"] if isinstance(plain.get("layer_types"), list) else []
    if others := sorted({str(kind) for kind in kinds} - {"full_attention"}):
        yield f"layers of {', '.join(others)}"


def _another_model(stored: dict[str, Any], wanted: dict[str, Any], differences: list[str]) -> str:
    listed = ", ".join(f"{key}={hydra_word(stored[key])}, not {hydra_word(wanted[key])}" for key in differences)
    # These may be null, and then follow from hidden_size and num_heads: set them too if those change.
    derived = ("num_kv_heads", "head_dim") if {"hidden_size", "num_heads"} & set(differences) else ()
    words = [f"model.{key}={hydra_word(value)}" for key, value in stored.items() if key in differences or key in derived]
    return f"it holds another model: it has {listed}. Type: {' '.join(words)}"


def _tensor_problems(stored: dict[str, StoredTensor], shape: ModelShape) -> Iterator[str]:
    expected = {place.name: place.shape for place in places(shape).values()}
    if missing := [name for name in expected if name not in stored]:
        yield f"its safetensors files lack {_some(missing)}"
    present = {name: stored[name] for name in expected if name in stored}
    if wrong := [f"{name} {list(entry.shape)}" for name, entry in present.items() if entry.shape != expected[name]]:
        yield f"tensors are not of the shape that its config.json gives them: {_some(wrong)}"
    if packed := [f"{name} ({entry.dtype})" for name, entry in present.items() if entry.dtype not in _FLOAT_TYPES]:
        yield f"tensors are of types other than {', '.join(_FLOAT_TYPES)}: {_some(packed)}"
    # Old Llamas store the rotary frequencies, which this decoder computes; a tied head may be stored as well as its table.
    ignored = {"lm_head.weight"} if shape.tie_embeddings else set()
    extra = [name for name in stored if name not in expected and name not in ignored and not name.endswith(".inv_freq")]
    if extra:
        yield f"it holds tensors that this decoder has no place for: {_some(sorted(extra))}"


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    more = len(shown) - _SHOWN
    return ", ".join(shown[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
