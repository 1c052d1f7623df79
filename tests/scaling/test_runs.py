"""Runs in: every kind of file, renamed, derived, and what cannot be used."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.errors import UserError
from scaling.expression import evaluate
from scaling.record import write_record
from scaling.runs import derive, read_runs, select
from scaling.usable import remarks_on_numbers, usable_rows
from scaling.wandb_runs import wandb_row
from tests.scaling.commands import scaling, written
from tests.scaling.test_record import RECORD

PLAIN = pd.DataFrame(
    {"name": list("abc"), "parameters": [1e7, 2e7, 4e7], "tokens": [1e9, 1e9, 2e9], "loss": [4.0, 3.8, 3.5]},
)


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "jsonl"])
def test_every_kind_of_file_gives_the_same_table(tmp_path, kind):
    path = tmp_path / f"runs.{kind}"
    if kind == "parquet":
        PLAIN.to_parquet(path)
    elif kind == "jsonl":
        PLAIN.to_json(path, orient="records", lines=True)
    else:
        PLAIN.to_csv(path, sep="\t" if kind == "tsv" else ",", index=False)
    frame = read_runs([path])
    pd.testing.assert_frame_equal(frame[list(PLAIN.columns)], PLAIN, check_dtype=False)
    np.testing.assert_allclose(frame["flops"], 6 * PLAIN["parameters"] * PLAIN["tokens"])
    np.testing.assert_allclose(frame["tokens_per_parameter"], PLAIN["tokens"] / PLAIN["parameters"])


def test_run_directories_alone_and_in_folders(tmp_path):
    for name, status in (("a", "finished"), ("b", "preempted"), ("c", "finished")):
        folder = tmp_path / "runs" / ("ladder/c" if name == "c" else name)
        folder.mkdir(parents=True)
        record = replace(
            RECORD, name=name, status=status, parameters=1000, tokens=50_000, flops=3e8, tokens_per_parameter=50.0, loss=3.0
        )
        write_record(folder, replace(record, losses={"code": 2.0}, errors={"copa": 0.25, "piqa": 0.75}))
    frame = read_runs([tmp_path / "runs"])
    assert sorted(frame["name"]) == ["a", "b", "c"]
    assert frame["loss_code"].tolist() == [2.0] * 3
    assert frame["error_piqa"].tolist() == [0.75] * 3
    assert frame["error"].tolist() == [0.5] * 3
    assert frame["model_num_layers"].tolist() == [2] * 3
    assert read_runs([tmp_path / "runs" / "a"])["name"].tolist() == ["a"]
    usable, left_out = usable_rows(frame, ["parameters", "tokens", "loss"])
    assert sorted(usable["name"]) == ["a", "c"]
    assert [(row.name, row.reason) for row in left_out] == [("b", "the run is preempted, not finished")]


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{")
    scaling("table", tmp_path / "run").assert_refused("run.json", "not JSON")


OFFLINE = Path(__file__).parent / "offline_wandb"
"""Two runs as wandb 0.31 wrote them: {"model": {"parameters": 1e7 / loss}, "tokens": 1e9}, and three values of val/loss."""


def test_offline_wandb_directories():
    frame = read_runs([OFFLINE], ["loss=val_loss", "parameters=model_parameters"]).sort_values("loss")
    assert frame["name"].tolist() == ["large", "small"]
    assert frame["loss"].tolist() == [3.0, 4.0]
    assert frame["status"].tolist() == ["finished", "finished"]
    np.testing.assert_allclose(frame["parameters"], [1e7 / 3, 1e7 / 4])
    np.testing.assert_allclose(frame["flops"], 6 * frame["parameters"] * 1e9)


def test_a_wandb_file_that_a_crash_cut_off_is_a_run_that_goes_on(tmp_path):
    whole = next(OFFLINE.rglob("*.wandb")).read_bytes()
    for kept in range(7, len(whole), 50):
        (tmp_path / "run-x.wandb").write_bytes(whole[:kept])
        row = wandb_row(tmp_path / "run-x.wandb")
        assert row["status"] in ("running", "finished")


def test_a_wandb_record_may_go_over_several_blocks(tmp_path):
    """LevelDB's log: a block of 32,768 bytes ends within a record of 100,000."""
    value = json.dumps("x" * 100_000).encode()
    item = b"\x0a\x04text" + b"\x82\x01" + varint(len(value)) + value
    config = b"\x0a" + varint(len(item)) + item
    record = b"\x2a" + varint(len(config)) + config
    log, kinds = b":W&B\x00\x00\x00", []
    while record:
        room = 32_768 - len(log) % 32_768 - 7
        piece, record = record[:room], record[room:]
        kinds.append(2 if not kinds else 3 if record else 4)
        log += bytes(4) + len(piece).to_bytes(2, "little") + bytes([kinds[-1]]) + piece
    (tmp_path / "run-x.wandb").write_bytes(log)
    assert kinds == [2, 3, 3, 4]
    assert wandb_row(tmp_path / "run-x.wandb")["text"] == "x" * 100_000


def varint(number):
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


@pytest.mark.parametrize(
    "content, said",
    [(b"hello", "is not a file of wandb's"), (b":W&B\x00\x00\x00" + bytes(4) + b"\x02\x00\x01\x0b\x00", "is damaged")],
)
def test_a_file_that_only_looks_like_wandbs(tmp_path, content, said):
    (tmp_path / "run-x.wandb").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_runs([tmp_path])


def test_renaming_takes_columns_and_expressions(tmp_path):
    path = written(tmp_path, PLAIN.rename(columns={"loss": "val loss", "tokens": "billions"}).assign(billions=[1.0, 1.0, 2.0]))
    frame = read_runs([path], ["loss=val loss", "tokens=billions*1e9"])
    assert frame["tokens"].tolist() == [1e9, 1e9, 2e9]
    for word, said in (("loss", "is not NEW=OLD"), ("loss=val_los", "no column 'val_los'; did you mean 'val loss'?")):
        with pytest.raises(UserError, match=said):
            read_runs([path], [word])


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
        "good": "it stands there twice (every column is equal)",
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


def test_what_follows_from_what_follows_is_added_too():
    frame = derive(pd.DataFrame({"flops": [6e17], "tokens_per_parameter": [10.0], "qat_fraction": [0.25]}))
    assert frame["tokens"].tolist() == pytest.approx([1e9])
    assert frame["fp_tokens"].tolist() == pytest.approx([7.5e8])
    # A cycle of two rules: tokens from its parts, a part from tokens.
    backwards = derive(pd.DataFrame({"qat_tokens": [1e8], "fp_tokens": [9e8], "tokens_per_parameter": [10.0]}))
    assert backwards["qat_fraction"].tolist() == pytest.approx([0.1])


@pytest.mark.parametrize("needed", [["flops", "tokens_per_parameter", "loss"], ["parameters", "tokens", "loss"]])
def test_units_are_looked_at_whatever_the_law(tmp_path, needed):
    wrong = PLAIN.assign(tokens=PLAIN["tokens"] / 1e9, parameters=PLAIN["parameters"] / 1e9)
    path = written(tmp_path, wrong)
    said = remarks_on_numbers(read_runs([path]), needed)
    assert [text.split()[0] for text in said] == ["tokens", "parameters"]
    words = [text.split("'")[1] for text in said]
    assert remarks_on_numbers(read_runs([path], words), needed) == []  # what is to be typed mends it


def test_guesses_at_missing_columns_are_no_columns_of_our_own(tmp_path):
    plain = PLAIN.drop(columns="loss").assign(flops=1e18)
    scaling("fit", "chinchilla", written(tmp_path, plain)).assert_refused("--rename loss=COLUMN")
    several = written(tmp_path, plain.assign(loss_a=3.0, loss_b=3.0))
    scaling("fit", "chinchilla", several).assert_refused("loss may be one of loss_a, loss_b: --rename loss=...")
    nested = written(
        tmp_path, plain.rename(columns={"parameters": "model_n_params"}).drop(columns="flops").assign(val_loss=3.0)
    )
    scaling("fit", "over-training", nested).assert_refused("--rename parameters=model_n_params --rename loss=val_loss")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"tokens": [1.0, 1.0, 2.0]}, "tokens goes up to 2 only: are these thousands, millions or billions"),
        ({"parameters": [10.0, 20.0, 40.0]}, "parameters goes up to 40 only"),
        ({"loss": [40.0, 38.0, 30.0]}, "or a perplexity?"),
        ({"flops": [1e10, 2e10, 8e10]}, "times 6 parameters tokens: units that differ"),
        ({"parameters_non_embedding": [5e6, 1.5e7, 3.5e7]}, "up to 50 % of a model here"),
        ({"parameters": [1e7, 1e7, 4e7], "loss": [4.0, 4.0, 3.5]}, "1 run repeats another's numbers exactly"),
    ],
)
def test_numbers_that_look_wrong_are_remarked_on(tmp_path, change, said):
    frame = read_runs([written(tmp_path, PLAIN.assign(**change))])
    assert any(said in text for text in remarks_on_numbers(frame, ["parameters", "tokens", "loss"]))
    assert remarks_on_numbers(read_runs([written(tmp_path, PLAIN)]), ["parameters", "tokens", "loss"]) == []


def test_a_query_that_cannot_be_evaluated_names_the_columns(tmp_path):
    frame = read_runs([written(tmp_path, PLAIN)])
    assert select(frame, "parameters < 3e7 and tokens == 1e9", "--where").tolist() == [True, True, False]
    for query in ("size > 3", "parameters >", "name > 3", "parameters", "3", "True", "parameters < 0"):
        with pytest.raises(UserError, match="--where"):
            select(frame, query, "--where")


@pytest.mark.parametrize(
    "expression",
    [
        "parameters < 3e7 & tokens == 1e9 | loss > 3.9", "parameters < 3e7 and not (tokens != 1e9)", "~(loss < 3.7)",
        "1e7 < parameters <= 4e7", "parameters in [1e7, 4e7]", "parameters not in (1e7, 2e7)", "parameters == [1e7, 4e7]",
        "name == 'b'", "name in ['a', 'c']", "name.str.contains('a|b')", "not name.str.startswith('a')", "`odd name` > 1",
        "parameters == parameters.max()", "loss.between(3.6, 3.9)", "loss.isna()", "`odd name`.notna() and -loss < -3.6",
        "name.isin(['a']) or tokens / parameters < 60", "parameters ** 2 % 7 > 3", '"`a` & @b" != name',
    ],
)  # fmt: skip
def test_expressions_mean_what_they_mean_in_pandas(expression):
    frame = PLAIN.assign(**{"odd name": [1.0, 2.0, np.nan]})
    expected = frame.index.isin(frame.query(expression, engine="python").index)
    assert evaluate(expression, frame).tolist() == expected.tolist()


def test_expressions_compute(tmp_path):
    assert evaluate("log(loss) * 2 + 1", PLAIN).tolist() == pytest.approx((2 * np.log(PLAIN["loss"]) + 1).tolist())
    assert evaluate("4", PLAIN) == 4.0


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("semi.csv", "a;b\n1;2\n", "separated by ';'"),
        ("runs.csv", "", "cannot be read as csv"),
        ("runs.csv", "a,b\n", "no runs in it"),
        ("runs.jsonl", "{", "cannot be read as jsonl"),
        ("runs.jsonl", "[1]\n", "a line is not a JSON object"),
        ("runs.parquet", "nothing", "cannot be read as parquet"),
        ("runs.xlsx", "nothing", "runs come as .csv"),
    ],
)
def test_files_that_hold_no_runs(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    scaling("table", tmp_path / name).assert_refused(name, said)


def test_tables_in_every_format(tmp_path):
    path = written(tmp_path, PLAIN)
    assert "1e7" in scaling("table", path).out
    plain = scaling("table", written(tmp_path, PLAIN.assign(qat_tokens=0, tokens=[9_000, 10_000, 2e9]), "fp.csv")).out
    assert "qat fraction" not in plain  # no run has one
    assert "9,000" in plain
    assert "10,000" not in plain
    assert "1e4" in plain
    assert scaling("table", path, "--format", "csv", "--columns", "name,loss").out == "name,loss\na,4.0\nb,3.8\nc,3.5\n"
    assert scaling("table", path, "--format", "markdown", "--columns", "name,loss").out.splitlines()[:3] == [
        "| name | loss |",
        "|---|---|",
        "| a | 4 |",
    ]
    assert scaling("table", path, "--where", "loss < 3.9", "--sort", "loss", "--json").json["runs"][0]["name"] == "c"
    assert scaling("table", path, "--out", tmp_path / "t.md").code == 0
    assert (tmp_path / "t.md").read_text().startswith("| name |")
    scaling("table", path, "--columns", "nam").assert_refused("no column 'nam'")
    scaling("table", path, "--format", "xml").assert_refused("terminal, csv, markdown and json")
    json.dumps(scaling("table", path, "--json").json)
