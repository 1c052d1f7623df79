"""Tables of runs, in every format."""

import json

from tests.support.scaling import PLAIN, scaling, written


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
    scaling("table", path, "--format", "xml").assert_refused("terminal, csv, markdown or json")
    json.dumps(scaling("table", path, "--json").json)
