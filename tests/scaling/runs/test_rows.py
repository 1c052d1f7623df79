"""Which rows a law can use, and what looks wrong about their numbers."""

import pytest

from scaling.runs.read import read_runs
from scaling.runs.rows import remarks_on_numbers, usable_rows
from tests.support.scaling import PLAIN, scaling, written


def test_every_row_that_is_not_used_is_listed_with_the_reason(tmp_path):
    text = """name,parameters,tokens,loss
good,1e7,1e9,4.0
text,1e7,abc,4.0
empty,1e7,1e9,
negative,1e7,1e9,-4.0
infinite,1e7,1e9,inf
zero,0,1e9,4.0
good,1e7,1e9,4.0
other,2e7,1e9,3.9
"""
    (tmp_path / "runs.csv").write_text(text)
    usable, left_out = usable_rows(read_runs([tmp_path / "runs.csv"]), ["parameters", "tokens", "loss"])
    assert usable["name"].tolist() == ["good", "other"]
    assert {row.name: row.reason for row in left_out} == {
        "text": "tokens is 'abc', not a number",
        "empty": "loss is missing",
        "negative": "loss is -4; it must be above 0",
        "infinite": "loss is infinite",
        "zero": "parameters is 0; it must be above 0",
        "good": "it is a copy of another row (every column is equal)",
    }
    answer = scaling("fit", "chinchilla", tmp_path / "runs.csv")
    assert "6 rows left out:" in answer.err
    assert "text: tokens is 'abc', not a number" in answer.err
    assert [row["name"] for row in scaling("fit", "chinchilla", tmp_path / "runs.csv", "--json").json["left_out"]] == [
        "text", "empty", "negative", "infinite", "zero", "good",
    ]  # fmt: skip


@pytest.mark.parametrize("law", ["over-training", "chinchilla"])
def test_text_in_a_column_that_others_follow_from_is_the_reason(tmp_path, law):
    runs = PLAIN.assign(tokens=[1e9, "unknown", 2e9])
    answer = scaling("fit", law, written(tmp_path, runs))
    assert "b: tokens is 'unknown', not a number" in answer.err
    text = written(tmp_path, PLAIN.assign(parameters=["11M", "20M", "40M"]))
    scaling("fit", law, text).assert_refused("cannot be fitted to 0 usable runs", "a: parameters is '11M', not a number")
    assert "11M" in scaling("table", text, "--format", "csv").out  # a table shows what stands there
    error = written(tmp_path, PLAIN.assign(parameters=["11M", "20M", "40M"], error=[0.8, 0.7, 0.65]))
    assert scaling("fit", "downstream", error, "--bootstrap", 0).code == 0  # which needs no parameters


@pytest.mark.parametrize("needed", [["flops", "tokens_per_parameter", "loss"], ["parameters", "tokens", "loss"]])
def test_units_are_looked_at_whatever_the_law(tmp_path, needed):
    wrong = PLAIN.assign(tokens=PLAIN["tokens"] / 1e9, parameters=PLAIN["parameters"] / 1e9)
    path = written(tmp_path, wrong)
    message = remarks_on_numbers(read_runs([path]), needed)
    assert [text.split()[0] for text in message] == ["tokens", "parameters"]
    words = [text.split("'")[1] for text in message]
    assert remarks_on_numbers(read_runs([path], words), needed) == []  # what is to be typed mends it


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokens": [1.0, 1.0, 2.0]}, "tokens goes up to 2 only: are these thousands, millions or billions"),
        ({"parameters": [10.0, 20.0, 40.0]}, "parameters goes up to 40 only"),
        ({"loss": [40.0, 38.0, 30.0]}, "or a perplexity?"),
        ({"flops": [1e10, 2e10, 8e10]}, "times 6 parameters tokens: units that differ"),
        ({"parameters_non_embedding": [5e6, 1.5e7, 3.5e7]}, "up to 50 % of a model here"),
        ({"parameters": [1e7, 1e7, 4e7], "loss": [4.0, 4.0, 3.5]}, "1 run repeats another's numbers exactly"),
    ],
)
def test_numbers_that_look_wrong_are_remarked_on(tmp_path, change, message):
    frame = read_runs([written(tmp_path, PLAIN.assign(**change))])
    assert any(message in text for text in remarks_on_numbers(frame, ["parameters", "tokens", "loss"]))
    assert remarks_on_numbers(read_runs([written(tmp_path, PLAIN)]), ["parameters", "tokens", "loss"]) == []
