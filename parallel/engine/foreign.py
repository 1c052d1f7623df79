"""Weights in the checkpoints of Megatron-LM and DeepSpeed, where their files say what they are.

They are pickles, and are read with torch's unpickler for weights alone, which runs no code from them.
"""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from parallel.engine.megatron_names import parts, rows_of
from parallel.shape import ModelShape

MEGATRON, DEEPSPEED = "latest_checkpointed_iteration.txt", "latest"
"""The file in which each writes the name of its newest checkpoint."""


@dataclass(frozen=True)
class Found:
    """The weights of a checkpoint, whole, on the CPU."""

    what: str
    """the format, in words"""
    tensors: Mapping[str, Tensor]
    shape: ModelShape | None
    """sizes if the checkpoint has them, and then tensors have our names; None: they have their model's own"""
    norm_eps: float = 0.0
    rope_theta: float = 0.0
    sequence: int = 0
    """tokens it was trained on at a time"""


def read(folder: Path) -> Found:
    """The newest checkpoint in a folder.

    Raises:
        UserError: it is of neither kind, says too little, or holds more than weights.
    """
    if (folder / MEGATRON).is_file():
        return _megatron(folder, _word(folder / MEGATRON))
    if (folder / DEEPSPEED).is_file():
        return _deepspeed(folder / _word(folder / DEEPSPEED))
    raise UserError(
        f"{folder} holds no checkpoint of Megatron-LM (with {MEGATRON}) nor of DeepSpeed (with {DEEPSPEED}); weights in "
        f"Hugging Face's format are read as they are: model.initial_weights={folder}"
    )


def _word(path: Path) -> str:
    word = path.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"[\w.-]+", word) or word in (".", ".."):
        raise UserError(f"{path} does not name a checkpoint: {word[:40]!r}")
    return word


def _load(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            plain = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no {path}") from None
    except Exception as error:  # a pickle fails in many ways
        asked = re.search(r"(?:GLOBAL|global) `?([\w.]+)`?", str(error))
        why = f"it asks for {asked[1]}, which weights do not need" if asked else str(error).splitlines()[0]
        raise UserError(f"{path} is not read, because that could run code: {why}") from None
    if not isinstance(plain, dict):
        raise UserError(f"{path} holds no dictionary of weights")
    return plain


def _deepspeed(folder: Path) -> Found:
    plain = _load(folder / "mp_rank_00_model_states.pt")
    if (folder / "mp_rank_01_model_states.pt").exists():
        raise UserError(f"{folder} is split over tensor ranks, and does not say how: merge it with its own tools first")
    module = plain.get("module")
    if not isinstance(module, dict) or "ds_version" not in plain:
        raise UserError(f"{folder} is not a checkpoint of DeepSpeed: it names no version, or has no weights")
    tensors = {name: value for name, value in module.items() if isinstance(value, Tensor)}
    shapes = {name: tuple(shape) for group in plain.get("param_shapes") or [] for name, shape in group.items()}
    if any(tuple(tensors[name].shape) != shape for name, shape in shapes.items() if name in tensors):
        raise UserError(
            f"{folder} was written under ZeRO stage 3, which leaves the weights in pieces: DeepSpeed's zero_to_fp32.py writes "
            f"them whole"
        )
    return Found(f"DeepSpeed {plain['ds_version']}", tensors, None)


def _megatron(folder: Path, word: str) -> Found:
    folder /= "release" if word == "release" else f"iter_{int(word):07d}" if word.isdecimal() else word
    if (folder / ".metadata").exists():
        raise UserError(f"{folder} is in Megatron-Core's distributed format: write it with --ckpt-format torch")
    files = {}
    for path in sorted(folder.glob("mp_rank_*/model_optim_rng.pt")):
        ranks = re.fullmatch(r"mp_rank_(\d+)(?:_(\d+))?", path.parent.name)
        if ranks is not None:
            files[int(ranks[1]), int(ranks[2] or 0)] = path
    if not files:
        raise UserError(f"there is no mp_rank_00/model_optim_rng.pt in {folder}")
    first = _load(files[min(files)])
    arguments = first.get("args")
    if not isinstance(arguments, argparse.Namespace):
        raise UserError(f"{folder} does not say what it is: it has no arguments of its training")
    shape = _shape(arguments, folder)
    tensor, pipeline = int(arguments.tensor_model_parallel_size), int(arguments.pipeline_model_parallel_size)
    wanted = {(rank, stage) for rank in range(tensor) for stage in range(pipeline)}
    if missing := wanted - set(files):
        raise UserError(f"{folder} lacks the files of {len(missing)} of its {len(wanted)} tensor and pipeline ranks")
    tensors: dict[str, Tensor] = {}
    for rank, stage in sorted(wanted):
        model = _load(files[rank, stage]).get("model")
        if not isinstance(model, dict):
            raise UserError(f"{files[rank, stage]} has no model, or one in virtual stages, which is not read")
        _take(model, shape, tensor, rank, stage * shape.num_layers // pipeline, tensors)
    return Found(
        f"Megatron-LM, tensor {tensor} x pipeline {pipeline}",
        tensors,
        shape,
        norm_eps=float(arguments.norm_epsilon),
        rope_theta=float(arguments.rotary_base),
        sequence=int(arguments.seq_length),
    )


def _take(
    model: Mapping[str, Any], shape: ModelShape, ranks: int, rank: int, first_layer: int, into: dict[str, Tensor]
) -> None:
    """Put what one rank has into the whole tensors."""
    for name, value in model.items():
        if not isinstance(value, Tensor) or name.endswith("_extra_state"):
            continue
        try:
            rows = rows_of(_unfused(name), shape, ranks, rank, first_layer)
        except AssertionError:
            raise UserError(f"it has {name}, for which this decoder has no place") from None
        for ours, rectangles in parts(value.contiguous().flatten(), value.shape, 0, rows).items():
            whole = into.setdefault(ours, torch.zeros(rectangles.shape))
            for offset, view in rectangles.parts:
                whole[tuple(slice(o, o + size) for o, size in zip(offset, view.shape, strict=True))] = view


def _unfused(name: str) -> str:
    """The name without TransformerEngine, which puts a norm's weight into the linear after it."""
    name = name.replace("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight")
    return name.replace("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight")


def _shape(arguments: argparse.Namespace, folder: Path) -> ModelShape:
    """The sizes, from the arguments of the training.

    Raises:
        UserError: they are of another kind of decoder.
    """
    other = {
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "add_bias_linear": False,
        "num_experts": None,
        "rotary_percent": 1.0,
    }
    try:
        wrong = [f"{key}={getattr(arguments, key)}" for key, value in other.items() if getattr(arguments, key) != value]
        wrong += [f"{key}=True" for key in ("add_qkv_bias", "use_rope_scaling") if getattr(arguments, key, False)]
        if wrong:
            raise UserError(f"{folder} is of another kind of decoder: {', '.join(wrong)}")
        heads, grouped = int(arguments.num_attention_heads), bool(arguments.group_query_attention)
        return ModelShape(
            num_layers=int(arguments.num_layers),
            hidden_size=int(arguments.hidden_size),
            num_heads=heads,
            num_kv_heads=int(arguments.num_query_groups) if grouped else heads,
            head_dim=int(arguments.kv_channels),
            ffn_size=int(arguments.ffn_hidden_size),
            vocab_size=int(arguments.padded_vocab_size),
            ffn="swiglu" if arguments.swiglu else "gelu",
            tie_embeddings=not arguments.untie_embeddings_and_output_weights,
            qk_norm=bool(getattr(arguments, "qk_layernorm", False)),
        )
    except AttributeError as error:
        raise UserError(f"{folder} does not say what it is: {error}") from None
