"""What is said of damaged metrics."""

import logging

import pytest

from train.folder.metrics_file import _lines_until


@pytest.mark.parametrize(
    "bad, said",
    [
        (1, ("1 line damaged", "lacks step 1, which")),
        (2, ("2 lines damaged", "lacks steps 1-2, which")),
    ],
)
def test_one_line_and_several_are_said_rightly(tmp_path, caplog, monkeypatch, bad, said):
    monkeypatch.setattr(logging.getLogger("foretrain"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("foretrain"), "disabled", False)  # as a library that another test used may leave it
    path = tmp_path / "metrics.jsonl"
    path.write_text("{\n" * bad)
    assert _lines_until(path, bad, whole=True) == []
    assert all(words in caplog.text for words in said)
    assert (tmp_path / "aside_metrics.jsonl").exists()
