"""Casts to small floats, against the formats' own numbers and against torch's float8."""

import itertools

import pytest
import torch

from common.bits import FLOAT_FORMATS
from quant.floats import cast


def numbers(name: str) -> torch.Tensor:
    """Every number of a format, from its bits (OCP MX 1.0, sections 5.3.1 to 5.3.3)."""
    form = FLOAT_FORMATS[name]
    found = set()
    for exponent, mantissa in itertools.product(range(2**form.exponent_bits), range(2**form.mantissa_bits)):
        if name == "e4m3" and exponent == 15 and mantissa == 7:
            continue  # not a number
        part = mantissa / 2**form.mantissa_bits
        size = part * 2.0 ** (1 - form.bias) if exponent == 0 else (1 + part) * 2.0 ** (exponent - form.bias)
        found |= {size, -size}
    return torch.tensor(sorted(found), dtype=torch.float64)


@pytest.mark.parametrize("name", FLOAT_FORMATS)
def test_every_weight_goes_to_the_nearest_number_of_its_block(name):
    form, grid = FLOAT_FORMATS[name], numbers(name)
    assert (grid.max(), len(grid)) == (form.largest, 2**form.bits - 1 - 2 * (name == "e4m3"))  # one zero, and no NaN
    weight = torch.randn(40, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) ** 3
    for block in (4, 32):
        found = cast(weight, form, block)
        parts, results = weight.view(-1, block), found.view(-1, block)
        for part, result in zip(parts, results, strict=True):
            power = torch.floor(torch.log2(part.abs().max())) - torch.floor(torch.log2(torch.tensor(form.largest).double()))
            nearest = (part[:, None] / 2**power - grid).abs().min(dim=1).values
            assert torch.isin(result / 2**power, grid).all()
            torch.testing.assert_close((part / 2**power - result / 2**power).abs(), nearest, rtol=0, atol=1e-15)


def test_numbers_stay_and_zeros_stay():
    for name, form in FLOAT_FORMATS.items():
        grid = numbers(name)
        row = torch.cat((grid, grid.new_zeros(-len(grid) % 32)))
        assert torch.equal(cast(row[None], form, len(row)), row[None])
        assert not cast(torch.zeros(2, 32), form, 32).any()


def test_e4m3_is_torch_s():
    """Where the scale is one: the largest weight of a block is in the format's last binade."""
    weight = torch.rand(64, 32, generator=torch.Generator().manual_seed(2)) * 500 - 250
    weight[:, 0] = 300.0
    assert torch.equal(cast(weight, FLOAT_FORMATS["e4m3"], 32), weight.to(torch.float8_e4m3fn).float())


def test_a_cast_weight_is_exact_in_bf16_and_cast_again_the_same():
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(3)) * 0.02
    for form in FLOAT_FORMATS.values():
        once = cast(weight, form, 32)
        assert torch.equal(once.bfloat16().float(), once)
        assert torch.equal(cast(once, form, 32), once)
