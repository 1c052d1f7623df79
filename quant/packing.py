"""Packing integers of 1 to 8 bits into bytes, and unpacking them.

At a width of B bits, number i occupies bits B i to B i + B - 1 of the bytes, lowest bit first. Ternary numbers (1.58 bits) are
digits in base 3, five to a byte, lowest first: 1.6 bits each, where log2(3) = 1.585 is the least possible. Stored numbers count
from 0, the quantizer's lowest integer. Unused bits of the last byte are zero.
"""

import numpy as np
import torch
from torch import Tensor

from quant.quantizer import LEVELS

_POWERS = np.array([1, 3, 9, 27, 81], dtype=np.uint16)


def packed_bytes(count: int, bits: float) -> int:
    """Bytes that `count` numbers take."""
    return -(-count // len(_POWERS)) if bits == 1.58 else -(-count * int(bits) // 8)


def pack(integers: Tensor, bits: float) -> Tensor:
    """Pack the quantizer's integers, of any shape, row by row, into bytes (uint8, one dimension)."""
    numbers = (integers.flatten() - LEVELS[bits].lowest).to(torch.uint8).numpy()
    if bits == 1.58:
        padded = np.zeros(packed_bytes(numbers.size, bits) * len(_POWERS), dtype=np.uint16)
        padded[: numbers.size] = numbers
        return torch.from_numpy((padded.reshape(-1, len(_POWERS)) * _POWERS).sum(axis=1).astype(np.uint8))
    bits_of = np.unpackbits(numbers[:, None], axis=1, bitorder="little", count=int(bits))
    return torch.from_numpy(np.packbits(bits_of.ravel(), bitorder="little"))


def unpack(packed: Tensor, bits: float, count: int) -> Tensor:
    """Unpack the integers, int16, one dimension.

    Raises:
        ValueError: the number of bytes is not what `count` numbers take, or a byte is not five ternary digits.
    """
    if packed.numel() != packed_bytes(count, bits):
        raise ValueError(f"{count} numbers of {bits:g} bits are {packed_bytes(count, bits)} bytes, not {packed.numel()}")
    data = packed.numpy()
    if bits == 1.58:
        if data.size and data.max() >= 3 ** len(_POWERS):
            raise ValueError(f"byte {data.max()} is not five digits in base 3")
        numbers = (data[:, None] // _POWERS % 3).ravel()[:count].astype(np.uint8)
    else:
        width = int(bits)
        digits = np.unpackbits(data, bitorder="little", count=count * width).reshape(count, width)
        numbers = np.packbits(digits, axis=1, bitorder="little").ravel()
    return torch.from_numpy(numbers.astype(np.int16) + LEVELS[bits].lowest)
