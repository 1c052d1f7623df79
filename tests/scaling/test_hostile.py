"""Runs from strangers: damaged, with odd names, and very many."""

import io
import json
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from scaling.record import write_record
from scaling.runs.read import read_runs
from scaling.runs.rows import usable_rows
from tests.support.records import RECORD
from tests.support.scaling import PLAIN, scaling, simulated, written

NEEDED = ("parameters", "tokens", "loss")


@pytest.fixture
def runs(tmp_path):
    """A folder of twelve finished runs."""
    rows = simulated("chinchilla").iloc[:12]
    for index, row in enumerate(rows.itertuples()):
        folder = tmp_path / "runs" / f"run{index}"
        folder.mkdir(parents=True)
        sizes = {"parameters": int(row.parameters), "tokens": int(row.tokens), "flops": 6.0 * row.parameters * row.tokens}
        write_record(folder, replace(RECORD, name=folder.name, status="finished", loss=float(row.loss), **sizes))
    return tmp_path / "runs"


def edit(path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("bad", [b"", b"\xff{", b"[]", b'{"schema": 1}', b"null", None])
def test_a_damaged_record_leaves_out_its_run_alone(runs, bad):
    path = runs / "run3" / "run.json"
    path.write_bytes(bad) if bad is not None else edit(path, losses=3)
    table = scaling("table", runs)
    assert table.code == 0
    assert "run4" in table.out
    assert "run3: " in table.err
    frame, left_out = usable_rows(read_runs([runs]), NEEDED)
    assert len(frame) == 11
    assert [row.name for row in left_out] == ["run3"]
    assert str(runs / "run3") in left_out[0].reason
    fitted = scaling("fit", "chinchilla", runs, "--bootstrap", "0")
    assert fitted.code == 0, fitted.err
    assert "run3: " in fitted.err


def test_where_no_record_can_be_read_the_first_is_named(runs):
    for path in runs.glob("*/run.json"):
        path.write_bytes(b"{")
    scaling("table", runs).assert_refused("run0/run.json is not JSON")


@pytest.mark.parametrize("name", ["[/]0", "[bold]x", "a[/bold]", "[link=x]y", "\\", "[red]"])
def test_rich_reads_no_markup_in_a_name(runs, name):
    edit(runs / "run3" / "run.json", name=name)
    answer = scaling("table", runs)
    assert answer.code == 0, answer.err
    assert name in answer.out
    if "\\" not in name:  # which an expression has no way to write
        held_out = scaling("fit", "chinchilla", runs, "--bootstrap", "0", "--holdout", f"name == '{name}'")
        assert name in held_out.out, held_out.err


@pytest.mark.parametrize("cell", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\tx"])
def test_a_spreadsheet_runs_no_cell(tmp_path, cell):
    path = written(tmp_path, PLAIN.assign(name=[cell, "b", "c"], change=["-1.5", "x", "-2"]))
    answer = scaling("table", path, "--format", "csv", "--columns", "name,change,loss")
    frame = pd.read_csv(io.StringIO(answer.out))
    assert list(frame["name"]) == [f"'{cell}", "b", "c"]
    assert [str(cell).removesuffix(".0") for cell in frame["change"]] == ["-1.5", "x", "-2"]  # numbers
    assert list(frame["loss"]) == list(PLAIN["loss"])


class Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def report_of(runs, place, script: str):
    """The report on a fit to runs whose names are scripts, some of which it shows in a table."""
    tokens = []
    for path in runs.glob("*/run.json"):
        edit(path, name=script)
        tokens.append(json.loads(path.read_text())["tokens"])
    (runs / "run4" / "run.json").write_text("{" + script)
    words = ["--holdout", f"tokens > {sorted(tokens)[-4]}", "--bootstrap", "50", "--out", place / "fit"]
    fitted = scaling("fit", "chinchilla", runs, *words)
    assert fitted.code == 0, fitted.err
    assert scaling("report", place / "fit", "--out", place / "r.html").code == 0
    return place / "r.html"


def test_a_report_runs_no_script_of_a_record(runs, tmp_path):
    page = report_of(runs, tmp_path, "<script>document.title='owned'</script><img src=x onerror=alert(1)>\"'>").read_text()
    assert "&lt;script&gt;" in page
    elements = Elements(page).found
    assert "script" not in {tag for tag, _ in elements}
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]
    assert all(str(attributes.get("src", "")).startswith("data:") for tag, attributes in elements if tag == "img")


def test_a_browser_runs_no_script_of_a_record(runs, tmp_path):
    """That the script would run is seen first, on a page that does not escape it."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium on this machine")
    script = "<script>document.documentElement.setAttribute('owned', 1)</script><img src=x onerror=\"document.title='owned'\">"

    def seen(page) -> str:
        words = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/browser", "--dump-dom"]
        return subprocess.run([*words, f"file://{page}"], capture_output=True, text=True, timeout=60, check=True).stdout

    (tmp_path / "bad.html").write_text(f"<!doctype html><html><body><table><tr><td>{script}</table></body></html>")
    assert '<html owned="1">' in seen(tmp_path / "bad.html")
    page = seen(report_of(runs, tmp_path, script))
    assert "&lt;script&gt;document.documentElement" in page
    assert "<html owned" not in page
    assert "<title>owned" not in page


def test_many_rows_are_read_and_shown_without_a_text_for_each(tmp_path, monkeypatch):
    """A million took minutes: a text was made of every cell, and rich laid out every row."""
    count = 20_000
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({column: draw.uniform(2e6, 3e6, count) for column in NEEDED})
    frame["name"] = [f"r{number}" for number in range(count)]
    path = written(tmp_path, frame.assign(loss=3.0))
    calls = []
    monkeypatch.setattr(pd.DataFrame, "astype", _counting(pd.DataFrame.astype, calls))
    answer = scaling("table", path)
    assert answer.code == 0, answer.err
    assert "20,000 runs, the first 1,000 by flops" in answer.out
    assert len(answer.out.splitlines()) < 1100
    assert (str,) not in calls
    assert len(scaling("table", path, "--json").json["runs"]) == count


def _counting(original, calls):
    def astype(self, *arguments, **options):
        calls.append(arguments)
        return original(self, *arguments, **options)

    return astype


@pytest.mark.parametrize("column, what", [("corpus", "corpora"), ("tokenizer", "tokenizers")])
def test_a_fit_over_several_corpora_says_so(runs, column, what):
    for index in range(12):
        edit(runs / f"run{index}" / "run.json", **{column: "a" * 32 if index < 8 else "b" * 32})
    fitted = scaling("fit", "chinchilla", runs, "--bootstrap", "0")
    assert f"the runs are on 2 {what}" in fitted.err
    word = f"{column} == '{'a' * 32}'"
    assert word in fitted.err
    alone = scaling("fit", "chinchilla", runs, "--bootstrap", "0", "--where", word)
    assert alone.code == 0, alone.err
    assert "the runs are on" not in alone.err
