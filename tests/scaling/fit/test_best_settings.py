"""Optima: of equal runs alone, whatever is repeated, and with the tokens that their budgets leave."""

import numpy as np
import pandas as pd
import pytest

from scaling.fit.best_settings import best_settings
from scaling.fit.fitting import fit
from scaling.laws import LAWS
from tests.support.scaling import scaling, simulated, written


def rates(sizes=(1e8, 1e9), *, exponent=-0.5, shift=-0.4):
    """Sweeps of the learning rate, whose best is 4.6 D^exponent N^shift up to a factor."""
    rows = []
    for size in sizes:
        for tokens in (2e9, 8e9, 3.2e10, 1.28e11):
            best = 32 * 4.6 * tokens**exponent * (size / 1e8) ** shift
            rows += [
                {"parameters": size, "tokens": tokens, "batch_tokens": 32 * 4096.0, "peak_learning_rate": best * factor,
                 "loss": 3 + 0.05 * np.log(factor) ** 2}
                for factor in (0.3, 0.5, 0.8, 1.2, 2.0, 3.0)
            ]  # fmt: skip
    return pd.DataFrame(rows).assign(name=lambda frame: [f"run {row}" for row in range(len(frame))])


def test_sizes_are_no_otherwise_equal_runs():
    """Merged sizes gave optima of two parabolas at once, and an exponent that no size alone has."""
    optima = best_settings(LAWS["learning-rate"], rates())
    assert len(optima.rows) == 8
    for size in (1e8, 1e9):
        own = rates((size,))
        assert fit(LAWS["learning-rate"], own, bootstrap=0).values()["b"] == pytest.approx(-0.5, abs=1e-6)
    fitted = fit(LAWS["step-law"], rates((1e8, 3e8, 1e9)), bootstrap=0)
    assert (fitted.values()["b"], fitted.values()["c"]) == pytest.approx((-0.4, -0.5), abs=1e-6)


def test_a_law_without_size_is_doubted_where_sizes_differ():
    fitted = fit(LAWS["learning-rate"], rates(np.geomspace(1e7, 1e10, 4), exponent=-0.1, shift=-0.7), bootstrap=50)
    assert "does not describe these optima" in fitted.doubts[0] or "explains" in fitted.doubts[0], fitted.doubts


def test_seeds_at_one_rate_are_one_point():
    """Six runs at the best rate of a group left no other rate in the window of five, and no parabola."""
    frame = rates((1e8,))
    best = frame.loc[frame.groupby("tokens")["loss"].idxmin()]
    noise = np.random.default_rng(0).normal(size=5)
    seeds = pd.concat([best.assign(loss=best["loss"] - 0.001 * value, name=f"seed {value}") for value in noise])
    fitted = fit(LAWS["learning-rate"], pd.concat([frame, seeds], ignore_index=True), bootstrap=0)
    assert len(fitted.runs) == 4
    assert fitted.values()["b"] == pytest.approx(-0.5, abs=0.02)


def test_tokens_of_a_budget_are_counted_as_the_table_counts_compute():
    frame = simulated("isoflop", noise=1e-6)
    frame["tokens"] = frame["flops"] / (6.0 * frame["parameters"])
    plain = fit(LAWS["isoflop"], frame, bootstrap=0).values()
    assert plain["tokens_coefficient"] == pytest.approx(1 / (6 * plain["size_coefficient"]), rel=1e-6)
    assert plain["tokens_exponent"] == pytest.approx(1 - plain["size_exponent"], abs=1e-9)
    # With attention and embeddings a FLOP buys fewer tokens, and more so for small models.
    counted = frame.assign(tokens=frame["tokens"] * 0.3 * frame["flops"] ** 0.02)
    values = fit(LAWS["isoflop"], counted, bootstrap=0).values()
    size, tokens = (values[f"{what}_coefficient"] * 1e21 ** values[f"{what}_exponent"] for what in ("size", "tokens"))
    assert tokens == pytest.approx(0.3 * 1e21**0.02 * 1e21 / (6 * size), rel=0.01)


def test_the_parabolas_go_with_the_fit(tmp_path):
    optima = best_settings(LAWS["isoflop"], simulated("isoflop"))
    first = optima.sweeps[optima.sweeps["name"] == optima.rows["name"].iloc[0]]
    x = np.log(first["setting"])
    bend, slope, _ = np.polyfit(x - x.mean(), first["curve"], 2)
    assert np.exp(x.mean() - slope / (2 * bend)) == pytest.approx(optima.rows["parameters"].iloc[0])
    scaling("fit", "isoflop", written(tmp_path, simulated("isoflop")), "--bootstrap", 50, "--out", tmp_path / "fit")
    pages = scaling("report", tmp_path / "fit", "--out", tmp_path / "report.html")
    assert pages.code == 0, pages.err
    assert (tmp_path / "report-1-isoflop-law.png").stat().st_size > 30_000
