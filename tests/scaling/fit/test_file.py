"""The file of a fit: whoever reads it refuses what was changed."""

import copy
import json

import pytest

from tests.support.scaling import scaling, simulated, written


@pytest.fixture(scope="module")
def rate_fit(tmp_path_factory):
    data = written(tmp_path_factory.mktemp("rate"), simulated("learning-rate"))
    return json.loads(scaling("fit", "learning-rate", data, "--json", "--bootstrap", 40).out)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 9}, "is of version 9, this program reads 1"),
        ({"version": "1"}, "is of version '1'"),
        ({"version": True}, "is of version True"),
        ({"law": "gone"}, "no law 'gone'"),
        ({"law": "chinchilla"}, "parameters a=4."),
        ({"runs": {}}, "runs.name is damaged or missing"),
        ({"runs.tokens": [1e9]}, "different lengths"),
        ({"runs.tokens.0": "x"}, "runs.tokens"),
        ({"runs.tokens.0": None}, "runs.tokens is damaged or missing"),
        ({"runs.name": None}, "runs.name"),
        ({"parameters.a.value": "4.6"}, "parameters.a.value: input should be a valid number"),
        ({"parameters.a.value": float("nan")}, "parameters.a.value: input should be a finite number"),
        ({"parameters.a.value": -3.0}, "a must lie between 0 and inf"),
        ({"parameters.a": 4.6}, "parameters.a: input should be a valid dictionary"),
        ({"weights": None}, "weights: input should be a valid list"),
        ({"weights.0": -1.0}, "weights.0: input should be greater than 0"),
        ({"draws.noise": [0.0]}, "different lengths"),
        ({"draws.theta.0": [1.0]}, "parameters and draws are not those of learning-rate: a, b"),
        ({"intervals.method": "guess"}, "intervals.method"),
        ({"objective.name": "guess"}, "objective.name"),
        ({"context": []}, "context"),
        ({"holdout": [{"name": 3}]}, "holdout.0.name"),
    ],
)
def test_a_fit_that_was_changed_is_refused_by_every_reader(rate_fit, tmp_path, change, message):
    plain = copy.deepcopy(rate_fit)
    for path, value in change.items():
        *way, last = (int(word) if word.isdigit() else word for word in path.split("."))
        place = plain
        for word in way:
            place = place[word]
        place[last] = value
    (tmp_path / "odd.json").write_text(json.dumps(plain))
    scaling("predict", tmp_path / "odd.json", "--tokens", 1e9, "--batch-tokens", 1e6).assert_refused("odd.json", message)
    scaling("plan", tmp_path / "odd.json", "--flops", 1e20).assert_refused("odd.json", message)
    scaling("report", tmp_path / "odd.json", "--out", tmp_path / "r.html").assert_refused("odd.json", message)


@pytest.mark.parametrize("content, message", [("{", "is not JSON"), ("[]", "is not a fit"), ('{"law": "x"}', "is not a fit")])
def test_what_is_no_fit_is_refused(tmp_path, content, message):
    (tmp_path / "odd.json").write_text(content)
    scaling("predict", tmp_path / "odd.json", "--tokens", 1e9).assert_refused("odd.json", message)


def test_a_fit_is_not_written_over_another_laws(tmp_path):
    data = written(tmp_path, simulated("isoflop"))
    assert scaling("fit", "isoflop", data, "--out", tmp_path, "--bootstrap", 40).code == 0
    before = (tmp_path / "fit.json").read_bytes()
    scaling("fit", "chinchilla", data, "--out", tmp_path).assert_refused("holds a fit of isoflop")
    assert (tmp_path / "fit.json").read_bytes() == before
    assert scaling("fit", "isoflop", data, "--out", tmp_path, "--bootstrap", 40, "--seed", 1).code == 0
    assert (tmp_path / "fit.json").read_bytes() != before
