"""Export to Hugging Face's format: weights, configuration and tokenizer. Quantized matrices as the forward pass uses them."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parallel.compose import Fill
from train.config.resolve.architecture import architecture_of
from train.folder.reading import load_run_config
from train.model.huggingface import INDEX, SINGLE, describe, folded, places
from train.trained.output import json_bytes, output_folder, read_run_tokenizer, show_written, write_parts
from train.trained.weights import weights_to_use

SHARD_BYTES = 5_000_000_000  # the size at which transformers' save_pretrained has long split files
_DTYPES = {"fp32": ("F32", "float32"), "bf16": ("F32", "float32"), "fp64": ("F64", "float64")}  # as parameters are stored
_ITEM_BYTES = {"F32": 4, "F64": 8}


@dataclass(frozen=True)
class _Tensor:
    """A parameter, with its name in the model and in the export."""

    name: str
    exported_name: str
    shape: tuple[int, ...]
    parameters: int
    bytes: int


def export_huggingface(run: Path, out: Path, *, shard_bytes: int = SHARD_BYTES, quantize: str | None = None) -> None:
    """Write `out` in Hugging Face's format, completely or not at all, and print what was written.

    The weights are those that the run's forward pass uses, bit for bit, except those into which the model's multipliers are
    folded. Only a few parameters are in memory at a time. `quantize`: see `train.trained.weights.weights_to_use`.

    Raises:
        UserError: `run` is not a run with weights, Hugging Face has no such architecture, or `out` is in use.
        WorkFailed: the disk failed; `out` is unchanged.
    """
    config = load_run_config(run)
    architecture = architecture_of(config.model)
    stored_dtype, torch_dtype = _DTYPES[config.train.precision]
    tokenizer, token, end_of_text = read_run_tokenizer(run)
    description = describe(
        architecture, init_std=config.model.init_std, end_of_text=end_of_text, sequence=config.train.sequence, dtype=torch_dtype
    )
    texts = {
        "config.json": description,
        "generation_config.json": {"bos_token_id": end_of_text, "eos_token_id": end_of_text},
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": token,
            "eos_token": token,
            "model_max_length": config.train.sequence,
            "clean_up_tokenization_spaces": False,
            # Training never parsed text as special tokens, so users of the export should not either.
            "split_special_tokens": True,
        },
    }
    weights = weights_to_use(run, config, quantize)
    tensors = []
    for name, place in places(config.model.shape).items():
        parameters = math.prod(place.shape)
        tensors.append(_Tensor(name, place.name, place.shape, parameters, parameters * _ITEM_BYTES[stored_dtype]))
    with output_folder(out) as folder:

        def fill(name: str, local: Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
            local.copy_(weights.used(name, shape))
            if (factor := folded(name, architecture)) != 1.0:
                local.mul_(factor)

        for name, content in texts.items():
            write_parts(folder / name, [json_bytes(content)])
        _write_weights(folder, tensors, stored_dtype, fill, shard_bytes)
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    count = sum(tensor.parameters for tensor in tensors)
    show_written(out, f"{description['architectures'][0]}, {count:,} parameters in {torch_dtype}; {weights}", sizes, weights)


def _write_weights(folder: Path, tensors: list[_Tensor], dtype: str, fill: Fill, shard_bytes: int) -> None:
    """Write one safetensors file, or several and an index if one would be larger than `shard_bytes`."""
    shards: list[list[_Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.bytes for other in shards[-1]) + tensor.bytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        write_parts(folder / SINGLE, _safetensors(tensors, dtype, fill))
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_parts(folder / name, _safetensors(shard, dtype, fill))
        weight_map.update({tensor.exported_name: name for tensor in shard})
    total = {"total_size": sum(tensor.bytes for tensor in tensors)}
    write_parts(folder / INDEX, [json_bytes({"metadata": total, "weight_map": weight_map})])


def _safetensors(tensors: list[_Tensor], dtype: str, fill: Fill) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, one parameter at a time: the library's function needs all of them in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        header[tensor.exported_name] = {
            "dtype": dtype,
            "shape": tensor.shape,
            "data_offsets": (position, position + tensor.bytes),
        }
        position += tensor.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the data for memory-mapping
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors:
        values = torch.empty(tensor.shape, dtype={"F32": torch.float32, "F64": torch.float64}[dtype])
        fill(tensor.name, values, (0,) * values.dim(), tensor.shape)
        yield values.flatten().view(torch.uint8).numpy().data
