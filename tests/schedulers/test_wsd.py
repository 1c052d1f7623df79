"""Warmup, stable, decay, against its definition in exact fractions."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.wsd import WarmupStableDecay


@st.composite
def schedules(draw) -> WarmupStableDecay:
    peak = draw(st.floats(1e-8, 1e3))
    warmup, stable, decay = (draw(st.integers(0, 10**12)) for _ in range(3))
    return WarmupStableDecay(
        peak=peak,
        floor=peak * draw(st.floats(0, 1)),
        warmup_tokens=warmup,
        decay_tokens=decay,
        total_tokens=max(1, warmup + stable + decay),
    )


def borders(schedule: WarmupStableDecay) -> list[int]:
    decay_starts = schedule.total_tokens - schedule.decay_tokens
    places = [0, schedule.warmup_tokens, decay_starts, schedule.total_tokens]
    return sorted({max(0, place + shift) for place in places for shift in (-1, 0, 1)})


def exact(schedule: WarmupStableDecay, tokens: int) -> Fraction:
    """The smaller of the three lines whose minimum the schedule is."""
    peak, floor = Fraction(schedule.peak), Fraction(schedule.floor)
    lines = [peak]
    if tokens < schedule.warmup_tokens:
        lines.append(peak * tokens / schedule.warmup_tokens)
    if schedule.decay_tokens:
        lines.append(floor + (peak - floor) * max(0, schedule.total_tokens - tokens) / schedule.decay_tokens)
    return min(lines)


@given(schedules(), st.lists(st.integers(0, 4 * 10**12)))
def test_it_is_the_minimum_of_three_lines_everywhere(schedule, tokens):
    for place in [*tokens, *borders(schedule)]:
        rate = schedule.learning_rate(place)
        assert rate == pytest.approx(float(exact(schedule, place)), rel=1e-12)
        assert 0 <= rate <= schedule.peak


@given(schedules())
def test_the_last_step_is_exactly_on_the_floor_and_there_it_stays(schedule):
    floor = schedule.floor if schedule.decay_tokens else schedule.peak
    for tokens in (schedule.total_tokens, schedule.total_tokens + 1, 3 * schedule.total_tokens):
        assert schedule.learning_rate(tokens) == floor


@given(schedules(), st.data())
def test_it_rises_in_warmup_and_never_after_it(schedule, data):
    first, second = sorted(data.draw(st.tuples(*[st.integers(0, schedule.total_tokens + 10)] * 2)))
    rates = schedule.learning_rate(first), schedule.learning_rate(second)
    if second <= schedule.warmup_tokens:
        assert rates[0] <= rates[1]
    if first >= schedule.warmup_tokens:
        assert rates[0] >= rates[1]


@given(schedules(), st.integers(1, 10**12), st.data())
def test_the_trunk_does_not_know_the_horizon(schedule, longer, data):
    tokens = data.draw(st.integers(0, schedule.total_tokens - schedule.decay_tokens))
    other = replace(schedule, total_tokens=schedule.total_tokens + longer)
    assert other.learning_rate(tokens) == schedule.learning_rate(tokens)
    assert other.phase(tokens) == schedule.phase(tokens)


@given(schedules())
def test_phases_follow_each_other_and_begin_at_their_borders(schedule):
    decay_starts = schedule.total_tokens - schedule.decay_tokens
    order = {"warmup": 0, "stable": 1, "decay": 2}
    numbers = [order[schedule.phase(tokens)] for tokens in borders(schedule)]
    assert numbers == sorted(numbers)
    assert (schedule.phase(0) == "warmup") == (schedule.warmup_tokens > 0)
    assert schedule.phase(decay_starts) == "stable"
    assert (schedule.phase(decay_starts + 1) == "decay") == (schedule.decay_tokens > 0)


def test_without_warmup_the_first_step_is_at_the_peak():
    schedule = WarmupStableDecay(peak=1e-3, floor=0.0, warmup_tokens=0, decay_tokens=10, total_tokens=100)
    assert schedule.learning_rate(1) == 1e-3


def test_without_decay_it_ends_at_the_peak():
    schedule = WarmupStableDecay(peak=1e-3, floor=0.0, warmup_tokens=10, decay_tokens=0, total_tokens=100)
    assert [schedule.learning_rate(tokens) for tokens in (10, 99, 100, 101)] == [1e-3] * 4
    assert schedule.phase(100) == schedule.phase(101) == "stable"
