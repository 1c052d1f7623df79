"""Tables of very many runs: fitted whole, judged on a sample, in memory that grows with their number and no faster."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest

from scaling.fit import large
from scaling.fit.fitting import fit
from scaling.laws import find_law
from scaling.runs import groups

FIXED = {"alpha": 0.34, "beta": 0.28}


def table(rows: int) -> pd.DataFrame:
    random = np.random.default_rng(1)
    size, tokens = 10 ** random.uniform(7, 10, rows), 10 ** random.uniform(9, 11.5, rows)
    loss = (1.69 + 406.4 / size**0.34 + 410.7 / tokens**0.28) * np.exp(random.normal(0, 0.005, rows))
    names = [f"run {number}" for number in range(rows)]
    return pd.DataFrame({"name": names, "parameters": size, "tokens": tokens, "loss": loss})


def test_a_sample_gives_the_fit_and_the_intervals_of_all(monkeypatch):
    law, runs = find_law("chinchilla"), table(2400)
    whole = fit(law, runs, fixed=FIXED, bootstrap=300)
    monkeypatch.setattr(large, "SAMPLE", 600)
    monkeypatch.setattr(large, "SEARCHED", 300)
    part = fit(law, runs, fixed=FIXED, bootstrap=300)
    assert part.theta == pytest.approx(whole.theta, rel=1e-5)
    assert part.objective_value == pytest.approx(whole.objective_value, rel=1e-9)
    for name in ("E", "A", "B"):
        here, there = (one.draws.interval(one.drawn_values()[name]) for one in (part, whole))
        assert here[0] < part.values()[name] < here[1]
        # The sample's own intervals would be twice as wide.
        assert here[1] - here[0] == pytest.approx(there[1] - there[0], rel=0.4)
    assert "2,400 points are many" in part.warnings[0]
    assert not any("are many" in warning for warning in whole.warnings)


def test_a_sample_keeps_whole_runs_or_some_of_every_run(monkeypatch):
    monkeypatch.setattr(large, "SAMPLE", 3000)
    many = np.repeat(np.arange(5000), 2)
    kept = large._rows(many, seed=0)
    assert len(kept) == 3000
    assert set(np.bincount(many[kept])) <= {0, 2}
    few = np.repeat(np.arange(10), 1000)
    kept = large._rows(few, seed=0)
    assert len(kept) == 3000
    assert set(few[kept]) == set(range(10))
    assert large._rows(many[:3000], seed=0) is None


def test_memory_grows_with_the_runs_not_with_their_square():
    one = fit(find_law("chinchilla"), table(300), fixed=FIXED, bootstrap=0)
    runs = table(4000)
    tracemalloc.start()
    object.__setattr__(one, "runs", runs)
    one.unknown_directions(one.theta)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4000 * 4000  # one byte for each pair


def test_sizes_with_too_few_rows_for_a_curve_are_not_looked_at(monkeypatch):
    looked = []
    unique = np.unique
    monkeypatch.setattr(groups.np, "unique", lambda values: looked.append(len(values)) or unique(values))
    assert groups._looks_like_checkpoints(table(500)) == []
    assert looked == []
