"""Runs in: every kind of file, renamed, derived, and what cannot be used."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from common.errors import UserError
from scaling.record import write_record
from scaling.runs.read import read_runs
from scaling.runs.rows import usable_rows
from tests.support.records import RECORD
from tests.support.scaling import PLAIN, scaling, written


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


def test_renaming_takes_columns_and_expressions(tmp_path):
    path = written(tmp_path, PLAIN.rename(columns={"loss": "val loss", "tokens": "billions"}).assign(billions=[1.0, 1.0, 2.0]))
    frame = read_runs([path], ["loss=val loss", "tokens=billions*1e9"])
    assert frame["tokens"].tolist() == [1e9, 1e9, 2e9]
    for word, message in (("loss", "is not NEW=OLD"), ("loss=val_los", "no column 'val_los'; did you mean 'val loss'?")):
        with pytest.raises(UserError, match=message):
            read_runs([path], [word])


@pytest.mark.parametrize(
    "name, content, message",
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
def test_files_that_hold_no_runs(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    scaling("table", tmp_path / name).assert_refused(name, message)
