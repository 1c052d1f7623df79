"""Warnings in plain words: one test for everything that data can fail to tell."""

import numpy as np
import pandas as pd
import pytest

from common.errors import UserError
from scaling.fit.fitting import fit
from scaling.fit.result import parameter_table
from scaling.fit.simulate import study
from scaling.laws import LAWS
from scaling.laws.base.columns import from_size_and_tokens
from tests.support.scaling import simulated


def runs_of(name, size, ratio, *, noise=None, seed=0):
    law = LAWS[name]
    size = np.asarray(size, dtype=float)
    columns = from_size_and_tokens(size, size * np.asarray(ratio, dtype=float))
    return study(law, law.truth, columns, law.noise if noise is None else noise, np.random.default_rng(seed))


def warned(fitted, *words):
    assert any(all(word in text for word in words) for text in fitted.warnings), fitted.warnings


def test_a_single_ratio_does_not_tell_size_from_data():
    fitted = fit(LAWS["over-training"], runs_of("over-training", np.geomspace(1e7, 1e9, 8), 20.0), bootstrap=50)
    warned(fitted, "all runs have about 20 tokens per parameter")
    warned(fitted, "do not determine a, b")
    table = parameter_table(fitted)
    assert np.isnan([table["a"]["low"], table["b"]["high"]]).all()
    assert np.isfinite(table["eta"]["low"])
    inside, outside = (
        fitted.predict({name: np.array([value]) for name, value in from_size_and_tokens(1e9, 1e9 * ratio).items()})
        for ratio in (20, 200)
    )
    assert np.isfinite(inside.low).all()
    assert np.isnan(outside.low).all()
    warned(
        fit(LAWS["chinchilla"], runs_of("chinchilla", np.geomspace(1e7, 1e9, 8), 20.0), bootstrap=50), "all runs have about 20"
    )


def test_one_size():
    fitted = fit(LAWS["chinchilla"], runs_of("chinchilla", [1e8] * 8, np.geomspace(5, 640, 8)), bootstrap=50)
    warned(fitted, "all runs have one size")
    warned(fitted, "do not determine", "E, A", "alpha")
    assert np.isnan(parameter_table(fitted)["A"]["low"])
    assert np.isfinite(parameter_table(fitted)["beta"]["low"])


def test_fewer_runs_than_parameters_and_as_many():
    frame = simulated("chinchilla").iloc[[0, 9, 22, 31, 40]]
    fitted = fit(LAWS["chinchilla"], frame.iloc[:3])
    warned(fitted, "3 runs for 5 parameters: many values fit equally well")
    assert np.isnan(parameter_table(fitted)["E"]["low"])
    warned(fit(LAWS["chinchilla"], frame), "nothing checks it")
    with pytest.raises(UserError, match="cannot be fitted to 1 usable run; it needs"):
        fit(LAWS["chinchilla"], frame.iloc[:1])


def test_an_optimum_at_a_bound():
    frame = simulated("chinchilla")
    frame["loss"] -= 1.9
    warned(fit(LAWS["chinchilla"], frame, bootstrap=50), "E is at its bound 0")


def test_correlations_and_few_degrees_of_freedom():
    fitted = fit(
        LAWS["over-training"], runs_of("over-training", [1e7, 8e7, 1.5e8, 4e8, 1e7], [20, 20, 20, 20, 320]), bootstrap=100
    )
    warned(fitted, "hardly tell parameters apart", "eta with E")
    warned(fitted, "1 residual degree of freedom: intervals are Student-t")
    warned(fitted, "the law goes through run 1, run 5")
    assert fit(LAWS["qat-fraction"], simulated("qat-fraction"), bootstrap=50).draws.theta.shape[1] == 1


def test_one_run_that_decides_is_named():
    frame = simulated("over-training")
    frame.loc[3, "loss"] += 0.6
    fitted = fit(LAWS["over-training"], frame, bootstrap=100)
    warned(fitted, "without run 4", "standard errors")
    warned(fitted, "robust standard deviations off the law: run 4", "--objective huber-log")
    robust = fit(LAWS["over-training"], frame, bootstrap=100, objective="huber-log")
    warned(robust, "off the law: run 4")
    clean = fit(LAWS["over-training"], simulated("over-training"), bootstrap=100)
    assert abs(robust.values()["eta"] - clean.values()["eta"]) < abs(fitted.values()["eta"] - clean.values()["eta"]) / 3


def test_forecasts_far_beyond_the_data():
    frame = pd.concat([simulated("over-training"), runs_of("over-training", [1e10], [20], seed=5)], ignore_index=True)
    frame["name"] = [f"run {row}" for row in range(len(frame))]
    held = frame["parameters"] > 1e9
    fitted = fit(LAWS["over-training"], frame, held_out=held, bootstrap=50)
    warned(fitted, "flops 1.2e+22 is", "above the largest fitted", "parameters 1e+10 is 25 times")
    assert len(fitted.runs) == len(frame) - 1
    near = fit(LAWS["over-training"], simulated("over-training"), bootstrap=50)
    assert not any("largest fitted" in text for text in near.warnings)


def test_too_few_bit_widths_and_lengths():
    frame = simulated("qat-loss")
    law = LAWS["qat-loss"]
    assert "2 bit widths" in law.remarks({key: frame[frame["bits"] > 2][key].to_numpy() for key in law.columns})[0]
    assert "all optima are at about" in LAWS["learning-rate"].remarks({"tokens": np.array([1e9, 1.1e9])})[0]


def test_optima_at_the_edge_are_left_out():
    frame = simulated("isoflop")
    first = frame["flops"] == frame["flops"].min()
    edge = frame[~first | (frame["parameters"] < frame[first]["parameters"].median())]
    fitted = fit(LAWS["isoflop"], edge, bootstrap=50)
    assert len(fitted.runs) == 8
    assert "no minimum between the settings of parameters (lowest near the largest)" in fitted.left_out[0].reason


def test_a_run_that_stands_alone_is_no_optimum():
    law = LAWS["isoflop"]
    with_losses = simulated("isoflop")
    lone = with_losses.sort_values("loss").drop_duplicates("flops").assign(flops=lambda runs: 1.2 * runs["flops"])
    fitted = fit(law, pd.concat([with_losses, lone], ignore_index=True), bootstrap=50)
    assert fitted.values() == fit(law, with_losses, bootstrap=50).values()
    warned(fitted, "9 of 18 groups of equal flops have fewer than 3 settings of parameters")
    assert "1 run at flops" in fitted.left_out[0].name
    for too_few in (lone, simulated("chinchilla"), with_losses[with_losses["flops"] < 2e19]):
        with pytest.raises(UserError, match=r"cannot be fitted to [0-2] optim(um|a); it needs at least three budgets"):
            fit(law, too_few, bootstrap=50)
    warned(fit(law, lone.drop(columns="loss"), bootstrap=50), "every row is taken to be an optimum")


def test_a_repeated_run_with_another_loss_is_pointed_at():
    frame = simulated("over-training")
    again = pd.concat([frame, frame.iloc[[2]].assign(loss=3.0)], ignore_index=True)
    warned(fit(LAWS["over-training"], again, bootstrap=50), "run 3 appears again with another loss")
    assert not any("again" in text for text in fit(LAWS["over-training"], frame, bootstrap=50).warnings)


def test_everything_may_be_fixed():
    law, frame = LAWS["over-training"], simulated("over-training")
    fitted = fit(law, frame, fixed=law.truth, bootstrap=200)
    assert fitted.values() == law.truth
    forecast = fitted.predict({key: np.array([value]) for key, value in from_size_and_tokens(1e9, 2e10).items()})
    assert forecast.law_low[0] == forecast.value[0] == forecast.law_high[0]
    assert forecast.high[0] - forecast.low[0] == pytest.approx(2 * 1.96 * law.noise, rel=0.4)


def test_a_clean_study_has_no_warning_and_no_doubt():
    fitted = fit(LAWS["chinchilla"], simulated("chinchilla"), bootstrap=200)
    assert fitted.warnings == fitted.doubts == ()


def test_weights_and_fixed_parameters():
    frame = simulated("over-training")
    frame["trust"] = 1.0
    frame.loc[3, "loss"] += 0.6
    frame.loc[3, "trust"] = 1e-9
    law = LAWS["over-training"]
    without = fit(law, frame.drop(index=3), bootstrap=0)
    assert fit(law, frame, weights="trust", bootstrap=0).values()["eta"] == pytest.approx(without.values()["eta"], rel=1e-4)
    fixed = fit(law, frame, fixed={"E": 1.5, "eta": 0.12}, bootstrap=50)
    assert (fixed.values()["E"], fixed.values()["eta"]) == (1.5, pytest.approx(0.12))
    assert parameter_table(fixed)["E"] == {"value": 1.5, "low": 1.5, "high": 1.5}
