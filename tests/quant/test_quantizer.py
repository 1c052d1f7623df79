"""Quantizers and their gradients against float64 computations made number by number."""

import math

import pytest
import torch

from quant.quantizer import LEVELS, fake_quantize, fake_quantize_tokens, first_scale

BITS = sorted(LEVELS)
LARGEST = {1: 1, 1.58: 1, 2: 1, 3: 3, 4: 7, 6: 31, 8: 127}
FLOOR = 1e-5


def value_of(ratio: float, bits: float) -> float:
    """A weight's value in units of its scale, from the table of forms, one number at a time."""
    if bits == 1:
        return 1.0 if ratio >= 0 else -1.0
    if bits == 1.58:
        return round(1.5 * min(max(ratio, -0.99), 0.99)) / 1.5
    if bits == 2:
        return (round(2 * min(max(ratio, -0.99), 0.99) - 0.5) + 0.5) / 2
    return float(min(max(round(ratio), -(2 ** (int(bits) - 1))), 2 ** (int(bits) - 1) - 1))


def is_inside(ratio: float, bits: float) -> bool:
    low, high = {1: (-1, 1), 1.58: (-0.99, 0.99), 2: (-0.99, 0.99)}.get(bits, (-LARGEST[bits] - 1, LARGEST[bits]))
    return low <= ratio <= high


def drawn(rows: int, columns: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scales_for(bits: float, weight: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """Smaller than at the start, so that weights lie outside on both sides."""
    return 0.6 * first_scale(weight, LEVELS[bits], groups)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("bits", BITS)
def test_values_are_those_of_the_forms(bits, groups):
    weight = drawn(5, 32)
    scale = scales_for(bits, weight, groups)
    found = fake_quantize(weight, scale, bits, FLOOR)
    for row in range(5):
        for column in range(32):
            step = scale[row, column * groups // 32].item()
            assert found[row, column].item() == pytest.approx(
                step * value_of(weight[row, column].item() / step, bits), rel=1e-14
            )


@pytest.mark.parametrize("bits", BITS)
def test_fp32_rounds_as_float64_does_but_at_the_borders(bits):
    weight = drawn(16, 256, torch.float32)
    scale = scales_for(bits, weight)
    found = fake_quantize(weight, scale, bits, FLOOR).double()
    expected = fake_quantize(weight.double(), scale.double(), bits, FLOOR)
    assert ((found - expected).abs() <= 1e-6 * expected.abs()).double().mean() > 0.999


@pytest.mark.parametrize("bits", BITS)
def test_a_row_has_no_more_values_than_its_bits_allow_and_uses_them(bits):
    weight = torch.linspace(-1.0, 1.0, 4096).repeat(4, 1)
    found = fake_quantize(weight, 0.5 * first_scale(weight, LEVELS[bits], 1), bits, FLOOR)
    allowed = 3 if bits == 1.58 else 2**bits
    assert [len(row.unique()) for row in found] == [allowed] * 4
    assert LEVELS[bits].count == allowed


@pytest.mark.parametrize("bits", BITS)
def test_first_scales(bits):
    weight = drawn(3, 8)
    found = first_scale(weight, LEVELS[bits], groups=2)
    for row in range(3):
        for group in range(2):
            sizes = [abs(number) for number in weight[row, 4 * group : 4 * group + 4].tolist()]
            expected = sum(sizes) / 4 if bits == 1 else max(sizes) / LARGEST[bits]
            assert found[row, group].item() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("bits", BITS)
def test_gradients_are_the_straight_through_rule_s(bits, groups):
    weight = drawn(5, 32).requires_grad_()
    scale = scales_for(bits, weight.detach(), groups).requires_grad_()
    upstream = drawn(5, 32, seed=1)
    fake_quantize(weight, scale, bits, FLOOR).backward(upstream)
    expected_scale = torch.zeros(5, groups, dtype=torch.float64)
    for row in range(5):
        for column in range(32):
            group, gradient = column * groups // 32, upstream[row, column].item()
            ratio = weight[row, column].item() / scale[row, group].item()
            inside, value = is_inside(ratio, bits), value_of(ratio, bits)
            assert weight.grad[row, column].item() == (gradient if inside else 0.0)
            expected_scale[row, group] += gradient * (value - ratio if inside and bits != 1 else value)
    torch.testing.assert_close(scale.grad, expected_scale / math.sqrt(5 * 32 * LARGEST[bits]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("bits", BITS)
def test_gradients_are_finite_differences_where_those_are_defined(bits):
    """Outside the range the value is level x scale; a weight there moves nothing. At 1 bit it is so everywhere."""
    weight = drawn(2, 400)
    scale = 0.2 * first_scale(weight, LEVELS[bits], 1)
    outside = torch.tensor([[not is_inside(r.item(), bits) for r in row] for row in weight / scale])
    counted = torch.ones_like(outside) if bits == 1 else outside
    assert outside.double().mean() > 0.1
    upstream = drawn(2, 400, seed=2) * counted
    leaf, scale_leaf = weight.clone().requires_grad_(), scale.clone().requires_grad_()
    fake_quantize(leaf, scale_leaf, bits, FLOOR).backward(upstream)
    step = 1e-7

    def objective(w: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return (fake_quantize(w, s, bits, FLOOR) * upstream).sum(dim=1, keepdim=True)

    slope = (objective(weight, scale * (1 + step)) - objective(weight, scale * (1 - step))) / (2 * step * scale)
    factor = 1 / math.sqrt(800 * LARGEST[bits])
    torch.testing.assert_close(scale_leaf.grad, slope * factor, rtol=1e-6, atol=1e-12)
    moved = objective(weight * torch.where(outside, 1 + step, 1.0), scale) - objective(weight, scale)
    assert moved.abs().max() == 0
    assert leaf.grad[outside].abs().max() == 0


@pytest.mark.parametrize("bits", [2, 4])
def test_a_part_of_a_matrix_is_told_the_size_of_the_whole(bits):
    weight, upstream = drawn(6, 32), drawn(6, 32, seed=1)
    scale = scales_for(bits, weight)
    gradients = []
    for rows, numel in ((slice(0, 6), None), (slice(2, 4), 6 * 32)):
        leaf = scale[rows].clone().requires_grad_()
        fake_quantize(weight[rows], leaf, bits, FLOOR, numel).backward(upstream[rows])
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0][2:4], gradients[1], rtol=1e-14, atol=0)


@pytest.mark.parametrize("bits", BITS)
def test_a_row_of_zeros_gives_small_finite_numbers_and_gradients(bits):
    weight = torch.zeros(2, 16, requires_grad=True)
    scale = first_scale(weight.detach(), LEVELS[bits], 1).requires_grad_()
    assert scale.abs().max() == 0
    found = fake_quantize(weight, scale, bits, FLOOR)
    found.sum().backward()
    assert found.abs().max() <= FLOOR
    assert len(found.unique()) == 1
    assert weight.grad.isfinite().all()
    assert scale.grad.isfinite().all()


@pytest.mark.parametrize("bits", BITS)
def test_infinite_weights_take_the_outermost_level_and_no_gradient(bits):
    weight = drawn(1, 16, torch.float32)
    weight[0, 3], weight[0, 5] = math.inf, -math.inf
    scale = first_scale(weight, LEVELS[bits], 1)
    assert scale.isfinite().all()
    leaf, scale_leaf = weight.requires_grad_(), scale.requires_grad_()
    found = fake_quantize(leaf, scale_leaf, bits, FLOOR)
    found.sum().backward()
    assert found[0, 3] == found.max()
    assert found[0, 5] == found.min()
    assert found.isfinite().all()
    assert leaf.grad[0, [3, 5]].abs().max() == 0
    assert scale_leaf.grad.isfinite().all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("collapsed", [0.0, -1.0, 1e-30])
def test_a_scale_that_collapsed_counts_as_the_floor_and_can_come_back(bits, collapsed):
    weight = drawn(1, 64, torch.float32)
    scale = torch.tensor([[collapsed]], requires_grad=True)
    found = fake_quantize(weight, scale, bits, FLOOR)
    outermost = max(abs(value_of(ratio, bits)) for ratio in (-1e9, 1e9))
    assert found.abs().max().item() == pytest.approx(FLOOR * outermost, rel=1e-6)
    # The loss falls as the weights come nearer to what they stand for: the scale must grow.
    ((found - weight) ** 2).sum().backward()
    assert scale.grad < 0


def test_a_bf16_weight_is_rounded_in_fp32():
    weight = drawn(8, 64, torch.bfloat16)
    scale = first_scale(weight, LEVELS[8.0], 1)
    found = fake_quantize(weight, scale, 8.0, FLOOR)
    expected = fake_quantize(weight.double(), scale.double(), 8.0, FLOOR)
    assert scale.dtype == torch.float32
    assert found.dtype == torch.bfloat16
    # Rounding u = w / a in bf16 would be off by up to half a step from 64 on.
    assert torch.equal(found, expected.to(torch.bfloat16))


def test_activations_have_eight_bits_per_token_and_a_straight_gradient():
    hidden = drawn(7, 33).requires_grad_()
    found = fake_quantize_tokens(hidden)
    for row, quantized in zip(hidden.detach(), found.detach(), strict=True):
        step = row.abs().max().item() / 127
        assert quantized.tolist() == pytest.approx([step * round(number / step) for number in row.tolist()], rel=1e-14)
    upstream = drawn(7, 33, seed=1)
    found.backward(upstream)
    assert torch.equal(hidden.grad, upstream)
    assert fake_quantize_tokens(torch.zeros(2, 4)).abs().max() == 0
