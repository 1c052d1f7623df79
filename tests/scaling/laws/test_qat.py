"""The share of a run that should be quantization-aware, against figures worked out by hand."""

import pytest

from scaling.laws.qat import optimal_fraction


@pytest.mark.parametrize(
    "ratio, fraction",
    # Of ln S = 6.7297 / ln(1 / f): exp(6.7297 / 2.302585) = 18.6, exp(6.7297 / 0.693147) = 16,464, ...
    [(18.59, 0.1), (65.49, 0.2), (267.7, 0.3), (1_547.0, 0.4), (16_464.0, 0.5)],
)
@pytest.mark.parametrize("bits", [1, 1.58, 4, 8])
def test_it_depends_on_the_tokens_per_byte_alone(ratio, fraction, bits):
    parameters = 86e6
    assert optimal_fraction(ratio * parameters * bits / 8, parameters, bits) == pytest.approx(fraction, rel=2e-3)


@pytest.mark.parametrize("tokens, fraction", [(2.3e9, 0.184), (1.4e12, 0.523)])
def test_the_paper_s_smallest_model_at_four_bits(tokens, fraction):
    assert optimal_fraction(tokens, 86e6, 4) == pytest.approx(fraction, abs=5e-4)


def test_it_grows_with_tokens_and_falls_with_parameters_and_bits():
    middle = optimal_fraction(1e10, 1e8, 4)
    assert optimal_fraction(1e11, 1e8, 4) > middle > optimal_fraction(1e9, 1e8, 4)
    assert optimal_fraction(1e10, 1e9, 4) < middle
    assert optimal_fraction(1e10, 1e8, 2) > middle > optimal_fraction(1e10, 1e8, 6)


def test_there_is_none_where_a_byte_has_no_more_than_one_token():
    assert optimal_fraction(5e5, 1e6, 4) == 0.0
    assert 0.0 < optimal_fraction(1e6, 1e6, 4) < 1e-4


@pytest.mark.parametrize("wrong", [(0, 1, 4), (1, 0, 4), (1, 1, 0), (-1, 1, 4)])
def test_what_is_not_above_zero_is_refused(wrong):
    with pytest.raises(ValueError, match="above 0"):
        optimal_fraction(*wrong)


def test_the_direct_fraction_is_that_of_the_notes():
    """S = 53.5 gives 0.18, S = 32,558 gives 0.52; inverse table; nothing at or below S = 1."""
    assert optimal_fraction(2.3e9, 86e6, 4) == pytest.approx(0.184, abs=1e-3)
    assert optimal_fraction(1.4e12, 86e6, 4) == pytest.approx(0.523, abs=1e-3)
    for fraction, ratio in ((0.1, 18.6), (0.2, 65), (0.3, 268), (0.4, 1548), (0.5, 16464), (0.55, 77400)):
        assert optimal_fraction(ratio * 1e9, 1e9, 8) == pytest.approx(fraction, abs=2e-3)
    assert optimal_fraction(1e9, 1e9, 8) == optimal_fraction(1e8, 1e9, 8) == 0.0
    with pytest.raises(ValueError, match="above 0"):
        optimal_fraction(0, 1, 4)
