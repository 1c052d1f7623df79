"""Integers in few bytes: what comes out is what went in, and as small as it should be."""

import json
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from quant.export import HEADER, WEIGHTS, header_text, pack_matrix, read, unpack_matrix
from quant.linear import Precision
from quant.packing import pack, packed_bytes, unpack
from quant.quantizer import LEVELS, fake_quantize, first_scale

BITS = sorted(LEVELS)
PER_NUMBER = {
    1: Fraction(1, 8),
    1.58: Fraction(1, 5),
    2: Fraction(2, 8),
    3: Fraction(3, 8),
    4: Fraction(4, 8),
    6: Fraction(6, 8),
    8: 1,
}


@given(bits=st.sampled_from(BITS), data=st.data())
def test_integers_come_back(bits, data):
    levels = LEVELS[bits]
    numbers = data.draw(st.lists(st.integers(levels.lowest, levels.highest), max_size=70))
    packed = pack(torch.tensor(numbers, dtype=torch.float32), bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_bytes(len(numbers), bits) == math.ceil(len(numbers) * PER_NUMBER[bits])
    assert unpack(packed, bits, len(numbers)).tolist() == numbers


def test_where_the_bits_are():
    """Worked out by hand: 4 bits from -8, 3 bits from -4, ternary digits from -1."""
    assert pack(torch.tensor([-8, 7, -7]), 4.0).tolist() == [0xF0, 0x01]
    assert pack(torch.tensor([3, -4, 3]), 3.0).tolist() == [0b11000111, 0b00000001]
    assert pack(torch.tensor([0, 1, -1, -1, 1, 0]), 1.58).tolist() == [1 + 2 * 3 + 2 * 81, 1]


def test_what_cannot_be_unpacked_is_refused():
    with pytest.raises(ValueError, match="5 numbers of 4 bits are 3 bytes, not 2"):
        unpack(torch.zeros(2, dtype=torch.uint8), 4.0, 5)
    with pytest.raises(ValueError, match="243"):
        unpack(torch.tensor([243], dtype=torch.uint8), 1.58, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bits", BITS)
def test_a_packed_matrix_is_what_the_forward_pass_uses_to_the_bit(bits, dtype):
    precision = Precision(bits=bits, group=8)
    weight = torch.randn(6, 24, dtype=torch.float64).to(dtype)
    weight[1] = 0
    scale = 0.8 * first_scale(weight, LEVELS[bits], 3)
    used = fake_quantize(weight, scale, bits, precision.scale_floor)
    packed = pack_matrix(weight, scale, precision)
    found = unpack_matrix(packed.packed, packed.scale_OG, json.loads(json.dumps(packed.entry)))
    assert found.dtype == dtype
    assert torch.equal(found, used)
    assert packed.packed.numel() == math.ceil(6 * 24 * PER_NUMBER[bits])


def test_a_folder_comes_back_and_a_broken_one_is_named(tmp_path):
    precision = Precision(bits=3)
    weight = torch.randn(5, 16)
    packed = pack_matrix(weight, first_scale(weight, LEVELS[3.0], 1), precision)
    tensors = {"a.weight.packed": packed.packed, "a.weight.scale": packed.scale_OG, "norm.weight": torch.ones(4)}
    save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / HEADER).write_text(header_text({"a.weight": packed.entry}, {}))
    found = read(tmp_path)
    assert set(found) == {"a.weight", "norm.weight"}
    assert torch.equal(found["a.weight"], fake_quantize(weight, packed.scale_OG, 3.0, precision.scale_floor))
    (tmp_path / HEADER).write_text(header_text({"a.weight": packed.entry | {"shape": [5, 17]}}, {}))
    with pytest.raises(ValueError, match=r"a\.weight"):
        read(tmp_path)
    with pytest.raises(ValueError, match="no int-packed folder"):
        read(tmp_path / "nowhere")
