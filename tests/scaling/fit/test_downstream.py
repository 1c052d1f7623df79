"""Errors are shares: what a law says beyond 0 or 1 is no forecast."""

import pandas as pd
import pytest

from scaling.fit.fitting import fit
from scaling.fit.predict import predict_run
from scaling.laws import LAWS
from tests.support.scaling import scaling, simulated, written

OWN = """
from scaling.laws import Law, Parameter

def share(loss, *, top, slope, middle):
    return top / (1 + (loss / middle) ** -slope)

SHARE = Law(name="share", formula=share, target="error", parameters={
    "top": Parameter(starts=(0.9,), high=1.0), "slope": Parameter(starts=(2.0, 6.0)), "middle": Parameter(starts=(2.0, 3.0)),
})
"""


def test_a_forecast_below_zero_is_no_forecast():
    fitted = fit(LAWS["downstream"], simulated("downstream"), bootstrap=50)
    answer = predict_run([fitted], {"loss": 0.5})
    row = answer["predictions"][0]
    assert row["value"] == 0.0
    assert str(row["low"]) == str(row["high"]) == "nan"
    assert any("does not hold here" in text and "less than 0" in text for text in answer["warnings"])
    near = predict_run([fitted], {"loss": 3.0})
    assert not any("does not hold" in text for text in near["warnings"])
    assert near["predictions"][0]["low"] > 0


def test_held_out_forecasts_below_zero_are_pointed_at():
    frame = pd.concat([simulated("downstream"), pd.DataFrame({"loss": [0.6], "error": [0.1], "name": ["tiny loss"]})])
    frame = frame.reset_index(drop=True)
    fitted = fit(LAWS["downstream"], frame, held_out=frame["loss"] < 1, bootstrap=50)
    assert fitted.holdout["predicted"].tolist() == [0.0]
    assert any("does not hold here" in text for text in fitted.warnings)


def test_no_error_is_above_one():
    assert LAWS["downstream"].parameters["epsilon"].high == 1.0
    frame = simulated("downstream")
    frame["error"] = (frame["error"] * 1.3).clip(upper=1.0)
    assert fit(LAWS["downstream"], frame, bootstrap=0).values()["epsilon"] <= 1.0


def test_an_error_law_of_ones_own_is_chained_too(tmp_path):
    law = tmp_path / "share.py"
    law.write_text(OWN)
    losses = simulated("over-training")
    errors = losses.assign(error=0.85 / (1 + (losses["loss"] / 2.5) ** -4.0))
    data = written(tmp_path, errors)
    assert scaling("fit", "over-training", data, "--bootstrap", 50, "--out", tmp_path / "loss").code == 0
    words = ["--law-file", law, "--loss-fit", tmp_path / "loss", "--holdout", "parameters > 3e8", "--bootstrap", 50]
    answer = scaling("fit", "share", data, *words, "--json").json
    assert len(answer["holdout"]) == 4
    assert answer["chain"]["law"] == "over-training"
    assert all(abs(row["relative_error"]) < 0.05 for row in answer["holdout"])
    assert answer["parameters"]["middle"]["value"] == pytest.approx(2.5, rel=0.05)
