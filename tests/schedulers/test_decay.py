"""Shapes of decays: where they begin and end, and that they are the papers' formulas."""

import math
from decimal import Decimal, getcontext
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.decay import ShapeName, exponential, inverse_proportional, shape_of

getcontext().prec = 40
SHAPES = get_args(ShapeName)
shares = st.floats(0, 1)
ROUNDING = 1e-13


@pytest.mark.parametrize("name", SHAPES)
@given(residue=st.floats(1e-12, 1 - 1e-9), floor=shares)
def test_from_one_to_exactly_zero(name, residue, floor):
    shape = shape_of(name, start=1.0, floor=floor, residue=residue)
    assert shape(0.0) == pytest.approx(1.0, rel=1e-6)
    assert shape(1.0) == 0.0


@pytest.mark.parametrize("name", SHAPES)
@given(first=shares, second=shares, residue=st.floats(1e-9, 0.999))
def test_it_falls_and_stays_between(name, first, second, residue):
    shape = shape_of(name, start=1.0, floor=0.0, residue=residue)
    early, late = (shape(x) for x in sorted((first, second)))
    assert -ROUNDING / (1 - residue) <= late <= early + ROUNDING / (1 - residue)
    assert early <= 1.0 + ROUNDING / (1 - residue)


@pytest.mark.parametrize("name", SHAPES)
@given(x=shares, residue=st.floats(1e-9, 0.999))
def test_it_is_never_negative_at_a_rate_that_counts(name, x, residue):
    """Rounding near the end may leave -1e-17; a learning rate never is negative (see test_schedule)."""
    assert shape_of(name, start=1.0, floor=0.0, residue=residue)(x) >= -1e-15 / (1 - residue)


@given(x=shares)
def test_the_plain_shapes_are_their_formulas(x):
    exact = Decimal(x)
    values = {name: shape_of(name, start=1.0, floor=0.0, residue=0.5)(x) for name in SHAPES}
    assert values["linear"] == pytest.approx(float(1 - exact), abs=1e-15)
    assert values["one_minus_sqrt"] == pytest.approx(float(1 - exact.sqrt()), abs=1e-15)
    assert values["square"] == pytest.approx(float(1 - exact * exact), abs=1e-15)
    half_angle = math.cos(math.pi * x / 2) ** 2  # another form of (1 + cos(pi x)) / 2
    assert values["cosine"] == pytest.approx(half_angle, abs=1e-15)
    assert values["mirror_cosine"] == pytest.approx(2 - 2 * x - half_angle, abs=1e-15)


@given(x=shares, residue=st.floats(1e-6, 0.99))
def test_the_curves_that_never_reach_zero_are_shifted_and_stretched(x, residue):
    r, exact = Decimal(residue), Decimal(x)
    curve = (r.ln() * exact).exp()
    assert exponential(x, residue) == pytest.approx(float((curve - r) / (1 - r)), rel=1e-9, abs=1e-12)
    curve = 1 / (exact * (1 / r - 1) + 1)
    assert inverse_proportional(x, residue) == pytest.approx(float((curve - r) / (1 - r)), rel=1e-9, abs=1e-12)


@given(x=shares, peak=st.floats(1e-5, 1.0), ratio=st.floats(0.02, 0.9))
def test_with_a_floor_they_are_the_pure_curves(x, peak, ratio):
    """WSD-S prints peak / (x (peak / floor - 1) + 1)."""
    floor = peak * ratio
    shapes = [shape_of(name, start=peak, floor=floor, residue=0.01) for name in ("inverse_proportional", "exponential")]
    inverse, exponential = (floor + (peak - floor) * shape(x) for shape in shapes)
    assert inverse == pytest.approx(peak / (x * (peak / floor - 1) + 1), rel=1e-9)
    assert exponential == pytest.approx(peak * (floor / peak) ** x, rel=1e-9)
