"""Intervals: exact where there is a closed form, covering where there is none."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scaling.fit.fitting import fit
from scaling.fit.intervals import BOOTSTRAP, STUDENT, visible
from scaling.fit.result import parameter_table
from scaling.fit.simulate import simulate, study
from scaling.fit.solver import solve
from scaling.laws import LAWS
from scaling.laws.base.columns import from_size_and_tokens
from tests.support.scaling import LINE, X, Y, few_starts, simulated


def straight(rows):
    return pd.DataFrame({"tokens": X["tokens"][:rows] + 2.0, "loss": Y[:rows] + 9.0, "name": [str(i) for i in range(rows)]})


def test_student_intervals_of_a_line_are_the_textbooks():
    for rows in (4, 7, 12):
        frame = straight(rows)
        fitted = fit(LINE, frame, bootstrap=20_000)
        assert fitted.draws.method == STUDENT
        exact = stats.linregress(frame["tokens"], frame["loss"])
        half = stats.t.ppf(0.975, rows - 2) * exact.stderr
        row = parameter_table(fitted)["q"]
        assert (row["low"], row["high"]) == pytest.approx((exact.slope - half, exact.slope + half), abs=0.06 * half)


def test_a_new_run_lies_wider_than_the_law():
    """Prediction interval of a line: t s sqrt(1 + 1/n + (x - mean)^2 / Sxx)."""
    frame = straight(12)
    fitted = fit(LINE, frame, bootstrap=20_000, roll_out=False)
    forecast = fitted.predict({"tokens": np.array([5.0])})
    x = frame["tokens"].to_numpy()
    scale = np.sqrt(np.sum(fitted.residuals**2) / 10)
    spread = 1 / 12 + (5.0 - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2)
    quantile = stats.t.ppf(0.975, 10)
    assert forecast.law_high[0] - forecast.value[0] == pytest.approx(quantile * scale * np.sqrt(spread), rel=0.06)
    assert forecast.high[0] - forecast.value[0] == pytest.approx(quantile * scale * np.sqrt(1 + spread), rel=0.06)


def test_the_method_follows_from_the_number_of_runs():
    law, frame = LAWS["chinchilla"], simulated("chinchilla")
    few = fit(law, frame, bootstrap=50)
    assert few.draws.method == BOOTSTRAP
    assert any("50 draws are few" in text for text in few.warnings)
    assert fit(law, frame.iloc[::2], bootstrap=50).draws.method == STUDENT
    assert fit(law, frame.iloc[::2], bootstrap=50, fixed={"E": 1.8, "alpha": 0.35}).draws.method == STUDENT
    with_none = fit(law, frame, bootstrap=0)
    assert with_none.draws.method == "none"
    assert any("--bootstrap 0" in text for text in with_none.warnings)


def test_intervals_are_the_same_for_the_same_seed_and_others_for_another():
    law, frame = LAWS["over-training"], simulated("over-training")
    first, second, third = (fit(law, frame, bootstrap=100, seed=seed).draws.theta for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, third)


LARGE = ("qat-fraction", "learning-rate")  # designs of which a third will do


# Forty studies: a share of 95 % has a standard deviation of 3.4 %. The full study is benchmarks/scaling_laws.py.
@pytest.mark.parametrize("name", ["over-training", "downstream", "isoflop", "qat-fraction", "learning-rate"])
def test_nominal_95_percent_cover(name):
    law = LAWS[name]
    columns = {key: values[::3] for key, values in law.design().items()} if name in LARGE else None
    report = simulate(law, columns=columns, sets=40, bootstrap=200)
    assert report.failed == 0
    shares = [
        *report.coverage.values(),
        report.law_coverage,
        *([report.run_coverage] if report.run_coverage is not None else []),
    ]
    assert min(shares) >= 0.85, report
    for key, value in report.median.items():
        assert value == pytest.approx(report.truth[key], rel=0.1)


def test_chinchilla_covers_with_few_runs_and_with_many():
    size, ratio = np.meshgrid(np.geomspace(1e7, 1e9, 4), np.geomspace(5, 320, 4))
    few = from_size_and_tokens(size.ravel(), (size * ratio).ravel())
    for columns, sets in ((few, 15), (None, 10)):
        report = simulate(few_starts("chinchilla"), columns=columns, sets=sets, bootstrap=200)
        assert min(*report.coverage.values(), report.law_coverage, report.run_coverage or 0) >= 0.8, report


def test_five_runs_and_four_parameters_still_cover():
    """The design of Gadre et al., table 1: one residual degree of freedom."""
    size = np.array([10_569_312, 78_914_048, 153_677_376, 411_616_256, 10_569_312], dtype=float)
    report = simulate(
        few_starts("over-training"),
        columns=from_size_and_tokens(size, size * np.array([20, 20, 20, 20, 320])),
        sets=50,
        bootstrap=150,
    )
    assert report.method == STUDENT
    assert min(*report.coverage.values(), report.law_coverage) >= 0.87, report


def test_runs_of_one_ratio_cover_what_they_determine():
    """A law of four parameters of which such runs determine three numbers: E, eta, and one that a and b share."""
    size = np.array([10_569_312, 78_914_048, 153_677_376, 411_616_256, 1_439_795_200, 6_889_410_560], dtype=float)
    columns, beyond = from_size_and_tokens(size, size * 20), from_size_and_tokens(2e10, 4e11)
    report = simulate(few_starts("over-training"), columns=columns, beyond=beyond, sets=30, bootstrap=150)
    assert report.coverage["a"] is report.coverage["b"] is None
    assert min(report.coverage["E"], report.coverage["eta"], report.law_coverage, report.run_coverage) >= 0.85
    fitted = fit(LAWS["over-training"], study_of(columns), bootstrap=200)
    assert fitted.rank == 3
    assert fitted.draws.lost == 0
    fewest = fit(LAWS["over-training"], study_of({name: column[:4] for name, column in columns.items()}), bootstrap=50)
    assert len(fewest.draws.theta) == 50  # one degree of freedom is left, whatever the number of parameters


@pytest.mark.parametrize("name", ["chinchilla", "over-training"])
def test_skewed_noise_keeps_its_long_tail_on_its_side(name):
    """Noise exp(Exponential(0.01)) lies above the law, and so must the intervals of new runs: each side misses its 2.5 %."""
    law, random = LAWS[name], np.random.default_rng(5)
    size, ratio = np.exp(random.uniform(17, 22, 1200)), np.exp(random.uniform(1, 6, 1200))
    frame = study(law, law.truth, from_size_and_tokens(size, size * ratio), 0.0, random)
    frame["loss"] *= np.exp(random.exponential(0.01, 1200))
    held = pd.Series(np.arange(1200) >= 200)
    table = fit(few_starts(name), frame, held_out=held, bootstrap=400).holdout
    below, above = np.mean(table["actual"] < table["low"]), np.mean(table["actual"] > table["high"])
    assert below < 0.03
    assert 0.01 < above < 0.05  # the wrong sign gives 0.15


def study_of(columns, **truth):
    law = LAWS["over-training"]
    return study(law, {**law.truth, **truth}, columns, 0.02, np.random.default_rng(8))


def test_a_vanished_term_comes_back_in_refits_that_need_it():
    """Refits from the optimum find what all starts find, also where the optimum has no term of b and a refit has one."""
    law = LAWS["over-training"]
    size, ratio = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 4e8, 5), [5.0, 20.0, 80.0, 320.0]))
    fitted = fit(law, study_of(from_size_and_tokens(size, size * ratio), b=3.0), bootstrap=0)
    assert fitted.values()["b"] < 1e-9
    assert any("b vanished" in text for text in fit(law, study_of(fitted.columns, b=3.0), bootstrap=50).warnings)
    optimum = law.to_solver(fitted.theta)
    targets = fitted.fitted + 0.02 * np.random.default_rng(1).normal(size=(10, len(size)))
    start = visible(law, optimum, fitted.jacobian(), frozenset(), 0.02)
    refits = solve(law, fitted.objective, fitted.columns, targets, np.repeat(start[None], 10, axis=0))
    assert refits.converged.all()
    starts = law.to_solver(law.starting_points(0))
    best = [solve(law, fitted.objective, fitted.columns, target, starts).objective.min() for target in targets]
    np.testing.assert_allclose(refits.objective, best, rtol=1e-6)
    assert np.sum(law.from_solver(refits.solver)[:, 2] > 0.1) >= 3


def test_resamples_without_what_tells_parameters_apart_are_left_out():
    """One run alone has another ratio: a third of the resamples miss it."""
    size = np.geomspace(1e7, 1e9, 41)
    frame = study_of(from_size_and_tokens(size, size * np.where(np.arange(41) == 20, 320.0, 20.0)))
    draws = fit(LAWS["over-training"], frame, bootstrap=400).draws
    assert draws.method == BOOTSTRAP
    assert draws.lost == pytest.approx(400 * (1 - 1 / 41) ** 41, abs=40)


@pytest.mark.slow
def test_all_sixteen_numbers_of_the_qat_loss_law():
    """757 runs, 0.3 % noise: the fraction of lowest loss comes back to 0.02."""
    law = few_starts("qat-loss", 160)  # of which one in five reaches the optimum
    report = simulate(law, sets=1, bootstrap=50)
    assert report.runs == 757
    assert report.noise == 0.003
    assert report.fraction_mae is not None
    assert report.fraction_mae < 0.02
    assert sum(share for share in report.coverage.values()) >= 0.7 * 16


def test_the_best_qat_fraction_comes_back():
    """Every third of the 757 runs, a tenth of the starts; all of them are the slow test above."""
    law = few_starts("qat-loss", 16)
    report = simulate(law, columns={name: column[::3] for name, column in law.design().items()}, sets=1, bootstrap=0)
    assert report.runs == 253
    assert report.fraction_mae is not None
    assert report.fraction_mae < 0.03
