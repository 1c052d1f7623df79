"""Simulated studies."""

import pytest

from scaling.laws import LAWS
from tests.support.scaling import scaling


def test_simulate_reports_coverage_and_writes_a_study(tmp_path):
    plain = scaling("simulate", "downstream", "--sets", 10, "--bootstrap", 50, "--json").json
    assert set(plain["coverage"]["parameters"]) == {"epsilon", "k", "gamma"}
    assert set(plain["coverage"]["forecast"]) == {"law", "run"}
    assert "covered" in scaling("simulate", "learning-rate", "--sets", 5, "--bootstrap", 50).out
    assert scaling("simulate", "over-training", "--out", tmp_path / "s.csv", "--noise", 0).code == 0
    again = scaling("fit", "over-training", tmp_path / "s.csv", "--json", "--bootstrap", 40).json
    for name, value in LAWS["over-training"].truth.items():
        assert again["parameters"][name]["value"] == pytest.approx(value, rel=1e-3)
    designed = scaling(
        "simulate", "over-training", "--design", tmp_path / "s.csv", "--sets", 3, "--bootstrap", 40, "--json"
    ).json
    assert designed["runs"] == 20
