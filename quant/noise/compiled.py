"""`cpu.c`, compiled by this machine's C compiler at its first use and kept in the user's cache.

Without a compiler `in_numpy.py` computes the same. That costs several times as much: a small matrix needs forty calls there.
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant.noise import draws

_TYPES = {torch.float32: ("float", "fabsf", "exp2f"), torch.float64: ("double", "fabs", "exp2")}


class Place(ctypes.Structure):
    """`Place` of `cpu.c`."""

    _fields_ = tuple(
        (name, ctypes.c_uint64 if name in ("key", "step") else ctypes.c_int64)
        for name in ("key", "step", "row", "column", "rows", "columns", "block", "uniform")
    )


@cache
def library(dtype: torch.dtype) -> Any:
    """The functions for fp32 or fp64; None if they cannot be compiled here."""
    real, fabs, exp2 = _TYPES[dtype]
    words = [f"-DREAL={real}", f"-DFABS={fabs}", f"-DEXP2={exp2}", f"-DONE={draws.ONE}", f"-DTWO={draws.TWO}"]
    # No fused multiply-add: the sums are numpy's, to the bit. No instructions that another machine with this cache may lack.
    words += ["-O3", "-ffp-contract=off", "-std=c11", "-shared", "-fPIC"]
    source = Path(__file__).with_name("cpu.c")
    name = hashlib.sha256(source.read_bytes() + " ".join([*words, platform.machine(), platform.libc_ver()[1]]).encode())
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foretrain"
        path = folder / f"noise-{name.hexdigest()[:16]}.so"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as temporary:  # several ranks may compile at once
                built = Path(temporary) / path.name
                command = [os.environ.get("CC", "cc"), *words, "-o", str(built), str(source), "-lm"]
                subprocess.run(command, check=True, capture_output=True, timeout=120)
                built.rename(path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def _called(function: Any, place: Place, *tensors: Tensor) -> None:
    if function(ctypes.byref(place), *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors)):
        raise MemoryError


def add(functions: Any, place: Place, weight_OI: Tensor, bits_PQ: Tensor) -> tuple[Tensor, Tensor]:
    """See `quant.noise.add.add_noise`. All tensors have the dtype of `functions`."""
    noised_OI, size_PQ = torch.empty_like(weight_OI), torch.empty_like(bits_PQ)
    _called(functions.add, place, weight_OI, bits_PQ, noised_OI, size_PQ)
    return noised_OI, size_PQ


def bits_gradient(functions: Any, place: Place, gradient_OI: Tensor, size_PQ: Tensor) -> Tensor:
    """See `quant.noise.add.add_noise`."""
    out_PQ = torch.empty_like(size_PQ)
    _called(functions.bits_gradient, place, gradient_OI, size_PQ, out_PQ)
    return out_PQ
