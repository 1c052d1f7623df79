"""The format `int-packed`: quantized matrices as packed integers and scales, all other parameters unchanged; and a reader.

A folder holds `int_packed.json`, the header, and `weights.safetensors`. For each quantized matrix the header has, under
"matrices", its bits, the number of columns that share a scale, its shape and the dtype of the forward pass; its tensors are
`NAME.packed` (uint8, see `quant.packing`) and `NAME.scale` (rows, groups). All other parameters are tensors under their own
names. `read` returns exactly the weights that the forward pass multiplies with.

Shape suffixes: O output rows, I input columns, G groups of columns in a row, C columns of a group.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from quant.linear import Precision
from quant.packing import pack, packed_bytes, unpack
from quant.quantizer import LEVELS, floored, integers, values

HEADER, WEIGHTS = "int_packed.json", "weights.safetensors"
FORMAT = "foretrain int-packed 1"


@dataclass(frozen=True)
class PackedMatrix:
    """A quantized matrix."""

    packed: Tensor
    scale_OG: Tensor
    entry: dict[str, Any]
    """its entry in the header"""


def pack_matrix(weight_OI: Tensor, scale_OG: Tensor, precision: Precision) -> PackedMatrix:
    """Pack a matrix, in the dtype of the forward pass, with its learned scales."""
    rows, columns = weight_OI.shape
    scale_OG = floored(scale_OG, precision.scale_floor)
    weight_OGC = weight_OI.to(scale_OG.dtype).unflatten(1, (scale_OG.shape[1], -1))
    numbers_OGC = integers(weight_OGC, scale_OG[..., None], precision.levels)
    entry = {
        "bits": precision.bits,
        "group": columns // scale_OG.shape[1],
        "shape": [rows, columns],
        "dtype": str(weight_OI.dtype).removeprefix("torch."),
    }
    return PackedMatrix(pack(numbers_OGC, precision.bits), scale_OG, entry)


def unpack_matrix(packed: Tensor, scale_OG: Tensor, entry: dict[str, Any]) -> Tensor:
    """The values (O, I) that the forward pass multiplies with, in its dtype."""
    precision, (rows, columns) = Precision(bits=float(entry["bits"])), entry["shape"]
    numbers = unpack(packed, precision.bits, rows * columns).to(scale_OG.dtype)
    numbers_OGC = numbers.view(rows, scale_OG.shape[1], -1)
    dequantized_OGC = values(numbers_OGC, scale_OG[..., None], precision.levels)
    return dequantized_OGC.flatten(1).to(getattr(torch, entry["dtype"]))


def header_text(matrices: dict[str, dict[str, Any]], model: dict[str, Any]) -> str:
    """The header of a folder. `model` describes the decoder, for readers and loaders."""
    used = sorted({float(entry["bits"]) for entry in matrices.values()})
    levels = {
        f"{bits:g}": {"lowest": LEVELS[bits].lowest, "shift": LEVELS[bits].shift, "slope": LEVELS[bits].slope} for bits in used
    }
    formula = (
        "weight = (lowest + number + shift) / slope x scale, computed in the dtype of the scale, then cast to the matrix's"
    )
    plain = {"format": FORMAT, "values": formula, "levels": levels, "model": model, "matrices": matrices}
    return json.dumps(plain, indent=2) + "\n"


def read(folder: Path) -> dict[str, Tensor]:
    """Every parameter of an `int-packed` folder by name, dequantized to exactly the values that the forward pass uses.

    Raises:
        ValueError: this is no int-packed folder, or its files do not belong together.
    """
    folder = Path(folder)
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        stored = load_file(folder / WEIGHTS)
        if header["format"] != FORMAT:
            raise ValueError(f"{folder / HEADER} is of the format {header['format']!r}, not {FORMAT!r}")
        dequantized = {}
        for name, entry in header["matrices"].items():
            packed, scale = stored.pop(f"{name}.packed"), stored.pop(f"{name}.scale")
            if packed.numel() != packed_bytes(math.prod(entry["shape"]), float(entry["bits"])):
                raise ValueError(f"{folder}: {name} has {packed.numel()} bytes, which is not its shape {entry['shape']}")
            dequantized[name] = unpack_matrix(packed, scale, entry)
    except (OSError, KeyError, TypeError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"{folder} is no int-packed folder: {error!r}") from None
    return stored | dequantized
