"""`foretrain export RUN --format huggingface|int-packed --out DIR`: a run's weights in a format that others read.

Quantized matrices are written as the forward pass uses them.
"""

import json
import math
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import UserError, WorkFailed
from common.files import sync
from parallel.environment import leave
from train.command import run_command
from train.evaluate import check_rounding
from train.generate import generation_config
from train.huggingface import INDEX, SINGLE, describe, folded, places
from train.run_directory import load_run_config

if TYPE_CHECKING:
    from torch import Tensor

    from parallel.compose import Fill
    from train.use import Weights

FORMATS = ("huggingface", "int-packed")
SHARD_BYTES = 5_000_000_000  # what transformers' own save_pretrained cut at for years
_DTYPES = {"fp32": ("F32", "float32"), "bf16": ("F32", "float32"), "fp64": ("F64", "float64")}  # as parameters are stored
_ITEM_BYTES = {"F32": 4, "F64": 8}


@dataclass(frozen=True)
class _Tensor:
    """A parameter, under both its names."""

    ours: str
    theirs: str
    shape: tuple[int, ...]
    parameters: int
    bytes: int


def export(
    run: Annotated[Path, typer.Argument(help="a run's folder, such as runs/demo")],
    out: Annotated[Path, typer.Option(help="the folder to write; it must be empty or not exist")],
    format: Annotated[str, typer.Option(help=f"one of: {', '.join(FORMATS)}")] = FORMATS[0],
    quantize: Annotated[
        str | None, typer.Option(help="round the weights of a full-precision run to nearest first: bits=4, or bits=4,group=64")
    ] = None,
) -> None:
    """Write a run's newest weights, its configuration and its tokenizer as a model that other programs load."""
    if format not in FORMATS:
        raise UserError(f"--format {format}: no such format; there is {', '.join(FORMATS)}")
    if quantize is not None:
        check_rounding(generation_config(run, []), quantize)
    write = export_huggingface if format == "huggingface" else export_int_packed
    write(run, out, quantize=quantize)


def export_huggingface(run: Path, out: Path, *, shard_bytes: int = SHARD_BYTES, quantize: str | None = None) -> None:
    """Write `out` in Hugging Face's format, whole or not at all, and print what was written.

    The weights are those that the run's forward pass uses, bit for bit, but for those that the model's multipliers go into. No
    more than a few parameters are in memory at a time. `quantize`: see `train.use.weights_to_use`.

    Raises:
        UserError: `run` is not a run with weights, has no counterpart there, or `out` is in use.
        WorkFailed: the disk refused; `out` is as it was.
    """
    config = load_run_config(run)
    stored_dtype, torch_dtype = _DTYPES[config.train.precision]
    tokenizer, token, end_of_text = _read_tokenizer(run)
    description = describe(config.model, end_of_text=end_of_text, sequence=config.train.sequence, dtype=torch_dtype)
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
            # In training no text was ever read as the end of a text, whatever its characters.
            "split_special_tokens": True,
        },
    }
    from train.use import weights_to_use

    weights = weights_to_use(run, config, quantize)
    tensors = []
    for ours, place in places(config.model.shape).items():
        parameters = math.prod(place.shape)
        tensors.append(_Tensor(ours, place.name, place.shape, parameters, parameters * _ITEM_BYTES[stored_dtype]))
    with _folder(out) as folder:

        def fill(name: str, local: "Tensor", offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
            local.copy_(weights.used(name, shape))
            if (factor := folded(name, config.model)) != 1.0:
                local.mul_(factor)

        for name, content in texts.items():
            _write(folder / name, [_json(content)])
        _write_weights(folder, tensors, stored_dtype, fill, shard_bytes)
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    count = sum(tensor.parameters for tensor in tensors)
    _show(out, f"{description['architectures'][0]}, {count:,} parameters in {torch_dtype}; {weights}", sizes)
    _say_what_is_left_out(weights)


def export_int_packed(run: Path, out: Path, *, quantize: str | None = None) -> None:
    """Write `out` as packed integers, scales and a header (see `quant.export`), whole or not at all; print what was written.

    Raises:
        UserError: `run` is not a run with weights, they are not quantized and are not to be, or `out` is in use.
        WorkFailed: the disk refused; `out` is as it was.
    """
    import dataclasses

    import torch
    from safetensors.torch import save

    from quant.export import HEADER, WEIGHTS, header_text, pack_matrix
    from train.build import build_model
    from train.use import weights_to_use

    config = load_run_config(run)
    tokenizer, _, end_of_text = _read_tokenizer(run)
    weights = weights_to_use(run, config, quantize)
    if weights.quant is None:
        raise UserError(
            f"{run} has {weights}: type --quantize bits=4 to round them to nearest, or --format huggingface to have them as "
            f"they are"
        )
    tensors, matrices = {}, {}
    for name, parameter in build_model(config.model, torch.float32, torch.device("meta")).named_parameters():
        shape, precision = tuple(parameter.shape), weights.precision(name)
        if precision is None:
            tensors[name] = weights.parameter(name, shape)
            continue
        packed = pack_matrix(*weights.matrix(name, shape, precision), precision)
        tensors[f"{name}.packed"], tensors[f"{name}.scale"], matrices[name] = packed.packed, packed.scale_OG, packed.entry
    model = {
        **dataclasses.asdict(config.model),
        "sequence": config.train.sequence,
        "end_of_text": end_of_text,
        "activation_bits": weights.quant.activation_bits,
    }
    with _folder(out) as folder:
        _write(folder / HEADER, [header_text(matrices, model).encode()])
        _write(folder / WEIGHTS, [save(tensors)])
        _write(folder / "tokenizer.json", [_json(tokenizer)])
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    counts: Counter[float] = Counter()
    for entry in matrices.values():
        counts[entry["bits"]] += math.prod(entry["shape"])
    parameters = ", ".join(f"{count:,} parameters of {bits:g} bits" for bits, count in sorted(counts.items()))
    _show(out, f"{len(matrices)} matrices, {parameters}", sizes)
    _say_what_is_left_out(weights)


def _say_what_is_left_out(weights: "Weights") -> None:
    if weights.quant is not None and weights.quant.activation_bits:
        print(f"  not in these files: the inputs of linears were rounded to {weights.quant.activation_bits} bits per token")


def _show(out: Path, what: str, sizes: Mapping[str, int]) -> None:
    print(f"{out}: {what}")
    for name, size in sizes.items():
        print(f"  {name:34} {size:>18,} bytes")


def _read_tokenizer(run: Path) -> tuple[dict[str, Any], str, int]:
    """The run's tokenizer as JSON, and the token that ends a text, in words and as an id."""
    from tokenizers import Tokenizer

    try:
        path = run / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(path))
        plain = json.loads(path.read_text(encoding="utf-8"))
        end_of_text = int(json.loads((run / "data.json").read_text(encoding="utf-8"))["end_of_text"])
        token = str(tokenizer.id_to_token(end_of_text))
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise UserError(f"the tokenizer of {run} cannot be read: {error!r}") from None
    if tokenizer.num_special_tokens_to_add(False):
        # Training leaves these tokens out; whoever loads the model would add them to every text.
        plain["post_processor"] = None
    return plain, token, end_of_text


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `out` when it is full, and is gone if anything goes wrong before."""
    out = out.expanduser().resolve()
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} exists and is not an empty folder: choose another --out, or delete it")
        if os.path.ismount(out):
            raise UserError(f"{out} is where a disk is mounted and cannot be replaced: choose a folder inside it")
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
    try:
        yield temporary
        os.rename(temporary, out)
    except OSError as error:
        raise WorkFailed(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_weights(folder: Path, tensors: list[_Tensor], dtype: str, fill: "Fill", shard_bytes: int) -> None:
    """One safetensors file, or several and an index where one would be larger than `shard_bytes`."""
    shards: list[list[_Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.bytes for other in shards[-1]) + tensor.bytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        _write(folder / SINGLE, _safetensors(tensors, dtype, fill))
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(folder / name, _safetensors(shard, dtype, fill))
        weight_map.update({tensor.theirs: name for tensor in shard})
    total = {"total_size": sum(tensor.bytes for tensor in tensors)}
    _write(folder / INDEX, [_json({"metadata": total, "weight_map": weight_map})])


def _safetensors(tensors: list[_Tensor], dtype: str, fill: "Fill") -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, parameter by parameter: the library's own function takes all of them at once."""
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        header[tensor.theirs] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": (position, position + tensor.bytes)}
        position += tensor.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data of a file that is mapped into memory is aligned
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors:
        values = torch.empty(tensor.shape, dtype={"F32": torch.float32, "F64": torch.float64}[dtype])
        fill(tensor.ours, values, (0,) * values.dim(), tensor.shape)
        yield values.flatten().view(torch.uint8).numpy().data


def _write(path: Path, parts: "Iterator[bytes | memoryview] | list[bytes]") -> None:
    with open(path, "wb") as stream:
        for part in parts:
            stream.write(part)
        sync(stream)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def main(arguments: list[str]) -> int:
    """Parse the command line and run. Returns the exit code."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended by a scheduler, it clears up as after Ctrl-C
    try:
        return run_command(export, arguments)
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
