"""Export a run's quantized weights as packed integers and scales (see `quant.export`)."""

import dataclasses
import math
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import save

from common.errors import UserError
from quant.export import HEADER, WEIGHTS, header_text, pack_matrix
from train.build.model import build_model
from train.folder.reading import load_run_config
from train.trained.output import json_bytes, output_folder, read_run_tokenizer, show_written, write_parts
from train.trained.weights import weights_to_use


def export_int_packed(run: Path, out: Path, *, quantize: str | None = None) -> None:
    """Write `out`, completely or not at all, and print what was written.

    Raises:
        UserError: `run` is not a run with weights, they are neither quantized nor to be rounded, or `out` is in use.
        WorkFailed: the disk failed; `out` is unchanged.
    """
    config = load_run_config(run)
    tokenizer, _, end_of_text = read_run_tokenizer(run)
    weights = weights_to_use(run, config, quantize)
    if weights.cast is not None:
        raise UserError(f"--format int-packed holds integers, not {weights.cast.name}: type --format huggingface")
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
    with output_folder(out) as folder:
        write_parts(folder / HEADER, [header_text(matrices, model).encode()])
        write_parts(folder / WEIGHTS, [save(tensors)])
        write_parts(folder / "tokenizer.json", [json_bytes(tokenizer)])
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    counts: Counter[float] = Counter()
    for entry in matrices.values():
        counts[entry["bits"]] += math.prod(entry["shape"])
    parameters = ", ".join(f"{count:,} parameters of {bits:g} bits" for bits, count in sorted(counts.items()))
    show_written(out, f"{len(matrices)} matrices, {parameters}", sizes, weights)
