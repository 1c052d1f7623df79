"""Columns: which follow from others, and what is said where one is missing."""

import numpy as np
import pandas as pd
import pytest

from scaling.runs.columns import derive
from scaling.runs.read import read_runs
from tests.support.scaling import PLAIN, scaling, simulated, written


def test_what_follows_from_other_columns_is_added_and_nothing_is_replaced(tmp_path):
    frame = pd.DataFrame(
        {
            "parameters": [1e7, 1e7],
            "tokens": [1e9, np.nan],
            "flops": [7e16, 1.2e17],
            "qat_fraction": [0.25, 0.5],
            "bits": [4, 4],
        }
    )
    read = read_runs([written(tmp_path, frame)])
    assert read["flops"].tolist() == [7e16, 1.2e17]
    assert read["tokens"].tolist() == [1e9, 2e9]
    assert read["qat_tokens"].tolist() == [2.5e8, 1e9]
    assert read["fp_tokens"].tolist() == [7.5e8, 1e9]
    assert read["name"].tolist() == ["row 1", "row 2"]


def test_what_follows_from_what_follows_is_added_too():
    frame = derive(pd.DataFrame({"flops": [6e17], "tokens_per_parameter": [10.0], "qat_fraction": [0.25]}))
    assert frame["tokens"].tolist() == pytest.approx([1e9])
    assert frame["fp_tokens"].tolist() == pytest.approx([7.5e8])
    # A cycle of two rules: tokens from its parts, a part from tokens.
    backwards = derive(pd.DataFrame({"qat_tokens": [1e8], "fp_tokens": [9e8], "tokens_per_parameter": [10.0]}))
    assert backwards["qat_fraction"].tolist() == pytest.approx([0.1])


def test_guesses_at_missing_columns_are_no_columns_of_our_own(tmp_path):
    plain = PLAIN.drop(columns="loss").assign(flops=1e18)
    scaling("fit", "chinchilla", written(tmp_path, plain)).assert_refused("--rename loss=COLUMN")
    several = written(tmp_path, plain.assign(loss_a=3.0, loss_b=3.0))
    scaling("fit", "chinchilla", several).assert_refused("loss may be one of loss_a, loss_b: --rename loss=...")
    nested = written(
        tmp_path, plain.rename(columns={"parameters": "model_n_params"}).drop(columns="flops").assign(val_loss=3.0)
    )
    scaling("fit", "over-training", nested).assert_refused("--rename parameters=model_n_params --rename loss=val_loss")


def test_missing_columns_are_named_with_the_words_to_type(tmp_path):
    frame = (
        simulated("chinchilla")
        .rename(columns={"parameters": "n_params", "loss": "val_loss"})
        .drop(columns=["flops", "tokens_per_parameter"])
    )
    path = written(tmp_path, frame)
    answer = scaling("fit", "chinchilla", path)
    answer.assert_refused(
        "no columns 'parameters' and 'loss', which chinchilla needs", "--rename parameters=n_params --rename loss=val_loss"
    )
    assert (
        scaling(
            "fit", "chinchilla", path, "--rename", "parameters=n_params", "--loss", "val_loss", "--json", "--bootstrap", 50
        ).json["n"]
        == 48
    )
    scaling("fit", "downstream", path, "--loss", "val_loss").assert_refused("no column 'error'", "--rename error=")
