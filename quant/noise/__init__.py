"""Pseudo-quantization noise on weights, the same on every layout."""

from collections.abc import Sequence

import torch
from torch import Tensor

from quant.noise.draws import noise_key, rounded_normal_by_key


def rounded_normal(
    shape: Sequence[int], *, seed: int, step: int, name: str, offset: Sequence[int] = (0, 0), device: torch.device | str = "cpu"
) -> Tensor:
    """R = round(N(0, 1) / 2) for a matrix or a slice of one, int8, with exactly the probabilities `PROBABILITIES`.

    Args:
        shape: rows and columns of the slice.
        seed: of the run.
        step: number of the optimizer step, below 2^24.
        name: of the parameter, which need not exist.
        offset: row and column of the whole matrix, which has at most 2^20 rows and 2^22 columns, where the slice begins.
        device: where the integers are made; they are the same on all.

    A value is a function of (seed, step, name, row, column) alone: a slice equals the same slice of the whole.
    """
    if torch.device(device).type != "cpu":
        from quant.noise.kernels import rounded_normal_on_gpu

        return rounded_normal_on_gpu(noise_key(seed, name), step, shape, offset, torch.device(device))
    return torch.from_numpy(rounded_normal_by_key(noise_key(seed, name), step, shape, offset))
