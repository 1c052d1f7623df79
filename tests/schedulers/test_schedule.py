"""Every schedule, by its properties and against its definition in exact fractions."""

import itertools
from dataclasses import replace
from fractions import Fraction
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.decay import ShapeName, WarmupName
from schedulers.schedule import Constant, PowerLaw, Schedule, final_decay, periodic_decays

FAR = 10**12
SHAPES = get_args(ShapeName)
lengths = st.integers(0, FAR)


@st.composite
def trunks(draw):
    peak = draw(st.floats(1e-8, 1e3))
    if draw(st.booleans()):
        return Constant(peak)
    return PowerLaw(peak, a=draw(st.floats(1, 10)), b=draw(st.floats(-0.8, -0.2)), batch_tokens=draw(st.integers(1, 10**8)))


@st.composite
def schedules(draw, shapes=SHAPES) -> Schedule:
    trunk, warmup = draw(trunks()), draw(lengths)
    if draw(st.booleans()):
        stable, decay = draw(lengths), draw(st.integers(1, FAR))
        decays = final_decay(warmup + stable + decay, decay)
    else:
        periods = draw(st.lists(st.integers(10, FAR), min_size=1, max_size=4))
        ends = list(itertools.accumulate([2 * warmup + periods[0], *periods[1:]]))
        decays = periodic_decays(ends, draw(st.floats(0.1, 0.5)))
    return Schedule(
        trunk=trunk,
        warmup_tokens=warmup,
        warmup_shape=draw(st.sampled_from(get_args(WarmupName))),
        warmup_start=draw(st.floats(0, 1)),
        decays=decays,
        decay_shape=draw(st.sampled_from(shapes)),
        decay_residue=draw(st.floats(0.001, 0.5)),
        floor=min(trunk(begin) for begin, _ in decays) * draw(st.floats(0, 1)),
    )


def total(schedule: Schedule) -> int:
    return schedule.decays[-1][1]


@given(schedules(), st.lists(lengths))
def test_it_is_never_negative_and_never_above_the_peak(schedule, tokens):
    borders = {schedule.warmup_tokens, *itertools.chain(*schedule.decays)}
    for place in [*tokens, *(max(0, border + shift) for border in borders for shift in (-1, 0, 1))]:
        assert 0 <= schedule.learning_rate(place) <= schedule.trunk.peak * (1 + 1e-12)


@given(schedules())
def test_every_decay_ends_exactly_on_the_floor_and_after_the_last_it_stays_there(schedule):
    for _, end in schedule.decays:
        assert schedule.learning_rate(end) == schedule.floor
    for tokens in (total(schedule) + 1, 3 * total(schedule)):
        assert schedule.learning_rate(tokens) == schedule.floor


@given(schedules(), st.data())
def test_it_rises_in_warmup_and_falls_in_decay(schedule, data):
    pair = data.draw(st.tuples(*[st.integers(0, schedule.warmup_tokens)] * 2))
    first, second = (schedule.learning_rate(tokens) for tokens in sorted(pair))
    assert first <= second * (1 + 1e-12)
    for begin, end in schedule.decays:
        pair = data.draw(st.tuples(*[st.integers(begin, end)] * 2))
        first, second = (schedule.learning_rate(tokens) for tokens in sorted(pair))
        assert first >= second * (1 - 1e-12) - 1e-15 * schedule.trunk.peak


@given(schedules(), st.integers(1, FAR), st.data())
def test_the_trunk_does_not_know_the_horizon(schedule, longer, data):
    begin = schedule.decays[0][0]
    tokens = data.draw(st.integers(0, begin))
    other = replace(schedule, decays=((begin + longer, begin + 2 * longer),))
    endless = replace(schedule, decays=())
    for another in (other, endless):
        assert another.learning_rate(tokens) == schedule.learning_rate(tokens)
        assert another.phase(tokens) == schedule.phase(tokens)


@given(schedules())
def test_it_is_continuous_where_a_phase_begins(schedule):
    """A token more or less than the border changes it by no more than the slope there allows, over phases of 1e12 tokens."""
    warmup, decay = FAR, FAR
    begin = warmup + FAR
    long = replace(schedule, warmup_tokens=warmup, decays=((begin, begin + decay),), floor=0.0)
    for border, start in ((warmup, long.trunk(warmup)), (begin, long.trunk(begin))):
        rates = [long.learning_rate(border + shift) for shift in (-1, 0, 1)]
        assert rates[1] == pytest.approx(start, rel=1e-12)
        assert rates == pytest.approx([rates[1]] * 3, rel=5e-6)  # 1 - sqrt(x) is the steepest: sqrt(1e-12)


@given(schedules())
def test_phases_follow_each_other_and_begin_at_their_borders(schedule):
    assert (schedule.phase(0) == "warmup") == (schedule.warmup_tokens > 0)
    for number, (begin, end) in enumerate(schedule.decays):
        assert schedule.phase(begin) != "decay"
        assert schedule.phase(begin + 1) == schedule.phase(end) == "decay"
        last = number == len(schedule.decays) - 1
        assert schedule.phase(end + 1) == ("decay" if last else "stable")
        if not last:
            assert schedule.learning_rate(end + 1) == schedule.trunk(end + 1)  # straight back, without a new warmup


@given(schedules(shapes=("linear",)), st.lists(lengths))
def test_linear_wsd_is_the_minimum_of_three_lines(schedule, tokens):
    peak = Fraction(schedule.trunk.peak)
    warmup, decay = schedule.warmup_tokens, total(schedule) - schedule.decays[-1][0]
    wsd = replace(
        schedule,
        trunk=Constant(float(peak)),
        warmup_shape="linear",
        warmup_start=0.0,
        decays=((warmup + 7, warmup + 7 + decay),),
        floor=float(peak) / 3,
    )
    floor, end = Fraction(wsd.floor), warmup + 7 + decay
    for place in [*tokens, warmup, warmup + 7, end]:
        lines = [peak, floor + (peak - floor) * max(0, end - place) / decay]
        if place < warmup:
            lines.append(peak * place / warmup)
        assert wsd.learning_rate(place) == pytest.approx(float(min(lines)), rel=1e-12)


def test_the_power_law_has_the_values_of_the_papers_example():
    """beta 1024 and 10T tokens: 0.0011 with a 4.6 and b -0.51 (arXiv 2408.13359, section 3.3)."""
    law = PowerLaw(peak=1.0, a=4.6, b=-0.51, batch_tokens=1024 * 4096)
    assert round(law(10**13), 4) == 0.0011


def test_the_power_schedule_at_ten_billion_a_hundred_billion_and_a_trillion_tokens():
    law = PowerLaw(peak=0.02, a=4.0, b=-0.51, batch_tokens=1024 * 4096)
    schedule = Schedule(trunk=law, warmup_tokens=10**9, decays=final_decay(11 * 10**11, 10**11))
    rates = [schedule.learning_rate(tokens) for tokens in (10**9, 10**10, 10**11, 10**12)]
    assert rates[:2] == [0.02, 0.02]
    assert rates[2:] == pytest.approx([0.01005, 0.00311], rel=2e-3)
    assert law.bend == pytest.approx(26.0e9, rel=2e-3)
    assert [PowerLaw(0.02, 4.0, -0.51, beta * 4096).bend for beta in (16, 128, 512)] == pytest.approx(
        [0.0075e9, 0.44e9, 6.67e9], rel=1e-2
    )


def test_the_power_law_is_frozen_where_the_decay_begins():
    law = PowerLaw(peak=0.02, a=4.0, b=-0.51, batch_tokens=4096)
    schedule = Schedule(trunk=law, decays=((1000, 2000),), decay_shape="linear")
    assert schedule.learning_rate(1500) == pytest.approx(law(1000) / 2, rel=1e-15)


def test_without_warmup_the_first_step_is_at_the_peak_and_without_decay_the_last():
    schedule = Schedule(trunk=Constant(1e-3))
    assert [schedule.learning_rate(tokens) for tokens in (0, 1, FAR)] == [1e-3] * 3
    assert schedule.phase(FAR) == "stable"


def test_a_warmup_may_start_above_zero():
    """Haegele et al.: n / n_w + (1 - n / n_w) / 100."""
    schedule = Schedule(trunk=Constant(2.0), warmup_tokens=100, warmup_start=0.01)
    assert schedule.learning_rate(0) == pytest.approx(0.02)
    assert schedule.learning_rate(50) == pytest.approx(2 * (0.5 + 0.5 / 100))


def test_borders_are_where_others_can_go_on():
    schedule = Schedule(trunk=Constant(1.0), warmup_tokens=10, decays=((90, 100), (190, 200)))
    assert schedule.borders() == [90, 100, 190, 200]
    cosine = Schedule(trunk=Constant(1.0), warmup_tokens=10, decays=((10, 100),))
    assert cosine.borders() == [100]


def test_another_schedule_takes_over_with_its_own_tokens():
    """Each part worked out by hand: a decay that ends at 100, then a rise over 20 and a fall to 180."""
    second = Schedule(trunk=Constant(0.5), warmup_tokens=20, decays=((20, 80),), decay_shape="linear")
    whole = Schedule(trunk=Constant(1.0), decays=((60, 100),), decay_shape="linear", then=(100, second))
    rates = {60: 1.0, 80: 0.5, 100: 0.0, 110: 0.25, 120: 0.5, 150: 0.25, 180: 0.0, 999: 0.0}
    assert {tokens: whole.learning_rate(tokens) for tokens in rates} == pytest.approx(rates)
    assert [whole.phase(tokens) for tokens in (60, 61, 100, 101, 119, 120, 121)] == [
        *("stable", "decay", "decay", "warmup", "warmup", "stable", "decay")
    ]
    assert whole.borders() == [60, 100, 180]
