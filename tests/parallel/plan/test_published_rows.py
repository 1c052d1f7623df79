"""The constants as they stand against what others measured."""

import numpy as np
import pytest

from benchmarks.planner import fits_right, misses
from benchmarks.planner_tables import narayanan
from parallel.plan.rows import read_rows


@pytest.fixture(scope="module")
def sweep(shared):
    rows, _ = read_rows(shared / "data" / "planner_rows.csv")
    return [row for row in rows if row.job.recipe.name == "nanotron"]


def test_speed_on_the_sweep(sweep):
    size = np.abs(misses(sweep, {}, "speed"))
    assert len(size) == 422
    assert np.median(size) < 0.06
    assert np.quantile(size, 0.9) < 0.20


def test_memory_on_the_sweep(sweep):
    assert np.median(np.abs(misses(sweep, {}, "memory"))) < 0.08


def test_fit_or_no_fit_on_the_sweep(sweep):
    assert len(sweep) == 1108
    assert fits_right(sweep, {}, sweep[0].job.constants.reserve_gib) > 0.95


def test_narayanans_tables():
    size = np.abs(misses(narayanan(), {}, "speed"))
    assert len(size) == 22
    assert np.median(size) < 0.08
    assert size.max() < 0.20
