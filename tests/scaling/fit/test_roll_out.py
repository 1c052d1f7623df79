"""Roll-outs: true laws are left alone, laws that are only nearly true are widened until they cover, and are doubted."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from scaling.fit.compare import compare
from scaling.fit.coordinates import beyond, coordinates
from scaling.fit.file import as_plain, read_fit, to_json
from scaling.fit.fitting import fit
from scaling.fit.naive import naive
from scaling.fit.result import held_out_summary
from scaling.fit.simulate import study
from scaling.laws import LAWS
from scaling.laws.base.columns import from_size_and_tokens
from tests.support.scaling import LINE, few_starts, scaling, simulated, written


def grid():
    """42 runs: seven sizes, six ratios."""
    size, ratio = np.meshgrid(np.geomspace(2e7, 2e9, 7), np.geomspace(5, 320, 6))
    return from_size_and_tokens(size.ravel(), (size * ratio).ravel())


def nearly_true(seed, bend=0.012):
    """Runs whose loss has a term that the law lacks, of a per cent or so: rates that suit large models ever less."""
    law = LAWS["chinchilla"]
    frame = study(law, law.truth, grid(), 0.002, np.random.default_rng(seed))
    frame["loss"] += bend * np.log(frame["parameters"] / 2e7).clip(lower=0) ** 1.5
    return frame


def covered(frame, *, roll_out):
    fitted = fit(few_starts("chinchilla"), frame, held_out=frame["parameters"] > 4e8, bootstrap=200, roll_out=roll_out)
    summary = held_out_summary(fitted)
    assert summary is not None
    return summary["inside"], fitted


def bent(seed, bend):
    """Runs on a line in log tokens that bends a little."""
    random = np.random.default_rng(seed)
    tokens = np.geomspace(1e8, 1e11, 60)
    x = np.log(tokens / 1e8)
    loss = 9.0 - 0.5 * x + bend * x**2 + 0.02 * random.normal(size=60)
    return pd.DataFrame({"tokens": tokens, "loss": loss, "name": [f"run {row}" for row in range(60)]})


def in_logarithms(tokens, *, p, q):
    return p + q * np.log(tokens)


@pytest.mark.parametrize(("bend", "low", "high"), [(0.01, 0.0, 0.6), (0.0, 0.88, 1.0)])
def test_a_law_that_is_only_nearly_true_covers_with_roll_outs_alone(bend, low, high):
    law = replace(LINE, formula=in_logarithms)
    shares = {True: [], False: []}
    for seed in range(12):
        frame = bent(seed, bend)
        for roll_out, kept in shares.items():
            fitted = fit(law, frame, held_out=frame["tokens"] > 8e9, bootstrap=200, roll_out=roll_out)
            kept.append(held_out_summary(fitted)["inside"])
    assert low <= np.mean(shares[False]) <= high, shares
    assert np.mean(shares[True]) > 0.8, shares


def test_a_true_law_is_hardly_widened():
    wider = []
    for seed in range(6):
        frame = study(LAWS["chinchilla"], LAWS["chinchilla"].truth, grid(), 0.003, np.random.default_rng(seed))
        wide, narrow = (covered(frame, roll_out=roll_out)[1].holdout for roll_out in (True, False))
        wider.append(((wide["high"] - wide["low"]) / (narrow["high"] - narrow["low"])).median())
    assert np.median(wider) < 1.4, wider


def test_nothing_is_widened_between_the_runs():
    frame = nearly_true(0, bend=0.03)
    fitted = fit(few_starts("chinchilla"), frame, bootstrap=200)
    assert np.abs(fitted.draws.drift).max() > 0
    inside = {name: np.array([value]) for name, value in from_size_and_tokens(2e8, 8e9).items()}
    outside = {name: np.array([value]) for name, value in from_size_and_tokens(2e10, 8e11).items()}
    plain = fit(few_starts("chinchilla"), frame, bootstrap=200, roll_out=False)
    assert plain.draws.drift is None
    assert fitted.predict(inside).high[0] == plain.predict(inside).high[0]
    assert fitted.predict(outside).high[0] > plain.predict(outside).high[0]
    assert fitted.predict(outside).law_high[0] == plain.predict(outside).law_high[0]


def test_distance_is_that_beyond_an_octagon():
    runs = from_size_and_tokens(np.array([1e8, 1e9, 1e8]), np.array([2e9, 2e10, 2e10]))
    asked = from_size_and_tokens(np.array([1e8, 1e9, 1e9, 1e10]), np.array([2e9, 2e10, 2e9, 2e10]))
    out = beyond(coordinates(asked), coordinates(runs))
    root = np.sqrt(2.0)
    assert out == pytest.approx([0, 0, np.log(10) / root, np.log(10)])
    other = {name: runs[name] for name in ("flops", "tokens_per_parameter")}
    for name, place in coordinates(other).items():
        np.testing.assert_allclose(place, coordinates(runs)[name])
    assert list(coordinates({"loss": np.array([2.0])})) == ["loss"]


def test_roll_outs_go_through_the_file(tmp_path):
    fitted = fit(few_starts("chinchilla"), nearly_true(1, bend=0.03), bootstrap=50)
    (tmp_path / "fit.json").write_text(to_json(as_plain(fitted)))
    again = read_fit(tmp_path)
    assert again.roll_outs == fitted.roll_outs
    assert again.doubts == fitted.doubts
    far = {name: np.array([value]) for name, value in from_size_and_tokens(2e10, 8e11).items()}
    assert again.predict(far).high[0] == pytest.approx(fitted.predict(far).high[0], rel=1e-5)


def test_a_fit_that_explains_little_is_doubted_in_the_first_line(tmp_path):
    frame = simulated("chinchilla")
    frame["loss"] *= np.exp(0.25 * np.random.default_rng(0).normal(size=len(frame)))
    answer = scaling("fit", "chinchilla", written(tmp_path, frame), "--bootstrap", 50)
    assert answer.out.splitlines()[0].startswith("Doubt this chinchilla fit: the law explains"), answer.out
    assert "R2" in answer.out.splitlines()[0]


def test_a_law_that_misses_its_own_largest_runs_is_doubted_in_the_first_line(tmp_path):
    frame = nearly_true(0)
    frame.loc[frame["parameters"] > 1.5e9, "loss"] *= 1.05
    answer = scaling("fit", "chinchilla", written(tmp_path, frame), "--bootstrap", 50)
    first = answer.out.splitlines()[0]
    assert first.startswith("Doubt this chinchilla fit: fitted to the runs up to"), answer.out
    assert "above its forecast" in first
    assert "roll-outs: the largest fitted runs" in answer.out


def test_a_trend_in_what_is_left_is_doubted():
    frame = nearly_true(0, bend=0.0)
    place = np.log(frame["parameters"])
    frame["loss"] *= 1 + 0.02 * np.cos(2 * np.pi * (place - place.min()) / np.ptp(place))
    fitted = fit(few_starts("chinchilla"), frame, bootstrap=50)
    assert any("goes with parameters" in text and "in the middle" in text for text in fitted.doubts), fitted.doubts
    assert fit(few_starts("chinchilla"), nearly_true(0, bend=0.0), bootstrap=50).doubts == ()


def test_the_naive_extrapolation_is_a_plane_in_logarithms():
    columns = grid()
    target = 3.0 * columns["parameters"] ** -0.1 * columns["tokens"] ** -0.05
    asked = from_size_and_tokens(np.array([1e10]), np.array([1e12]))
    both = [{name: table[name] for name in ("parameters", "tokens")} for table in (columns, asked)]
    assert naive(both[0], target, both[1]) == pytest.approx(3.0 * 1e10**-0.1 * 1e12**-0.05)
    few = {name: column[:3] for name, column in both[0].items()}
    assert np.isnan(naive(few, target[:3], both[1])).all()


def test_held_out_runs_have_a_line_that_counts_them(tmp_path):
    data = written(tmp_path, simulated("chinchilla"))
    words = ["fit", "chinchilla", data, "--holdout", "parameters > 5e8", "--bootstrap", 100]
    plain = scaling(*words, "--json").json
    summary = plain["holdout_summary"]
    assert summary["runs"] == len(plain["holdout"]) == 18
    assert summary["inside"] == pytest.approx(np.mean([row["covered"] for row in plain["holdout"]]))
    assert summary["inside"] + summary["below"] + summary["above"] == pytest.approx(1.0)
    shown = scaling(*words).out
    assert "the 12 furthest off of 18" in shown.replace("\n", " ")
    assert "18 held out: intervals hold" in shown
    assert "a plane through the nearest runs" in shown.replace("\n", "")


def test_laws_are_compared_by_what_they_forecast(tmp_path):
    truth = {**LAWS["chinchilla"].truth, "alpha": 0.25, "beta": 0.55, "A": 100.0, "B": 2e5}
    frame = study(LAWS["chinchilla"], truth, grid(), 0.002, np.random.default_rng(0))
    rows, verdict = compare(
        [fit(few_starts(name), frame, objective="huber-log", bootstrap=0) for name in ("over-training", "chinchilla")]
    )
    assert [row.law for row in rows] == ["chinchilla", "over-training"]
    assert rows[0].aic == 0 < 10 < rows[1].aic
    assert "chinchilla describes them best" in verdict
    data = written(tmp_path, frame)
    assert scaling("compare", "over-training", "chinchilla", data, "--json").json["laws"][0]["law"] == "chinchilla"
    shown = scaling("compare", "chinchilla", "over-training", data)
    assert shown.out.startswith("chinchilla forecasts the largest runs best")
    scaling("compare", "chinchilla", data).assert_refused("two laws or more")
    scaling("compare", "chinchilla", "isoflop", data).assert_refused()


def test_the_best_of_a_sweep_per_size_and_tokens(tmp_path):
    frame = simulated("over-training")
    swept = pd.concat([frame.assign(loss=frame["loss"] + more, peak_lr=more, name=f"lr {more}") for more in (0.0, 0.05, 0.3)])
    data = written(tmp_path, swept)
    words = ["--bootstrap", 0, "--json"]
    best = scaling("fit", "over-training", data, "--best-per", "parameters,tokens", *words).json
    assert best["n"] == len(frame)
    alone = scaling("fit", "over-training", written(tmp_path, frame, "alone.csv"), *words).json
    assert best["parameters"] == alone["parameters"]
    assert any("are not the best of their parameters, tokens" in text for text in best["warnings"])
    scaling("fit", "over-training", data, "--best-per", "size").assert_refused("--best-per size", "no such column")


def test_huber_delta_is_an_option(tmp_path):
    data = written(tmp_path, simulated("chinchilla"))
    small, usual = (
        scaling("fit", "chinchilla", data, *more, "--bootstrap", 0, "--json").json for more in (["--delta", 1e-4], [])
    )
    assert small["objective"]["delta"] == 1e-4
    assert "delta" not in usual["objective"]
    assert small["objective"]["value"] < 0.3 * usual["objective"]["value"]
    scaling("fit", "over-training", data, "--delta", 1e-4).assert_refused("least-squares has none")
    scaling("fit", "chinchilla", data, "--delta", 0).assert_refused("--delta 0 must be above 0")
