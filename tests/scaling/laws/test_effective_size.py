"""Quantized from the first step, beside runs in full precision, with bits of activations."""

import numpy as np
import pandas as pd
import pytest

from scaling.fit.fitting import fit
from scaling.laws import LAWS
from scaling.runs.read import read_runs
from tests.support.scaling import few_starts, scaling, simulated, written

LAW = LAWS["effective-size"]


def test_bits_of_weights_and_of_activations_come_back():
    fitted = fit(few_starts("effective-size", 48), simulated("effective-size", noise=1e-5), bootstrap=0)
    for name, value in LAW.truth.items():
        assert fitted.values()[name] == pytest.approx(value, rel=0.02), name


def test_one_width_is_no_study_of_widths():
    columns = {name: column[LAW.design()["bits"] == 4.0] for name, column in LAW.design().items()}
    assert any("all runs have 4 bits of a weight" in text for text in LAW.remarks(columns))


def test_a_missing_width_is_that_of_full_precision(tmp_path):
    frame = simulated("effective-size").drop(columns=["name"])
    full = frame["activation_bits"] == 16
    path = written(tmp_path, frame.assign(activation_bits=frame["activation_bits"].where(~full)))
    assert read_runs([path])["activation_bits"].eq(16).sum() == full.sum()


def test_the_qat_loss_law_takes_runs_that_lack_a_phase(tmp_path):
    """Quantized from the first step (no full-precision tokens) and not at all (no bits, no quantized tokens)."""
    law = LAWS["qat-loss"]
    columns = {
        "parameters": 1e8,
        "bits": 4.0,
        "qat_tokens": np.array([1e10, 0.0, 5e9]),
        "fp_tokens": np.array([0.0, 1e10, 5e9]),
    }
    start, full, both = law.value(np.array([[law.truth[name] for name in law.names]]), columns)[0]
    base = 1.75 + 1800 * 1e10**-0.36 + 400 * 1e8**-0.34
    assert full == pytest.approx(base, rel=1e-12)
    assert start > full
    assert both > full
    frame = simulated("qat-loss").iloc[::4].drop(columns="name")
    lacking = frame.iloc[:20].assign(fp_tokens=0.0)
    plain = frame.iloc[20:40].assign(qat_tokens=0.0, bits=np.nan)
    data = written(tmp_path, pd.concat([frame, lacking, plain], ignore_index=True))
    words = [f"--fix={name}={law.truth[name]}" for name in law.names if name not in ("alpha", "beta", "phi")]
    answer = scaling("fit", "qat-loss", data, *words, "--bootstrap", 0, "--json").json
    assert answer["n"] == len(frame) + 40
    assert answer["left_out"] == []


def test_a_published_study_of_bits(shared):
    """QuEST (arXiv 2502.05003): one law for every width of weights and activations, full precision included."""
    data = shared / "data" / "runs" / "qat_from_start.csv"
    words = ["--rename", "bits=weight_bits", "--bootstrap", 0, "--json", "--where", "weight_quantizer != 'fp4'"]
    plain = scaling("fit", "effective-size", data, *words).json
    assert plain["n"] > 60
    assert plain["metrics"]["relative_error"] < 0.03
    assert plain["metrics"]["r2"] > 0.9
