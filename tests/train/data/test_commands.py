"""`python -m train.data`."""

import pytest

from train.data.__main__ import main


@pytest.fixture
def overrides(workplace) -> list[str]:
    path = workplace.write_json_lines(workplace.text / "a.jsonl", [workplace.sentence(number) for number in range(100)])
    return [
        "data=files",
        f"data.files=['{path}']",
        f"data.cache_dir={workplace.cache}",
        "tokenizer=bytes",
        "train.sequence=128",
    ]


def test_prepare(overrides, workplace, capsys):
    assert main(["prepare", *overrides]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    for word in (
        "documents",
        "tokens",
        "bytes per token",
        "vocabulary 257",
        "bigram loss",
        str(workplace.cache),
        "built",
    ):
        assert word in said.out
    assert main(["prepare", *overrides]) == 0
    assert "reused" in capsys.readouterr().out


def test_inspect_shows_borders(overrides, capsys):
    assert main(["inspect", *overrides]) == 0
    said = capsys.readouterr().out
    assert said.count("sample ") == 3
    assert said.count("<|endoftext|>") >= 3
    assert "document " in said


def test_mistakes(overrides, workplace, capsys):
    assert main([]) == 2
    assert main(["prepair"]) == 2
    assert main(["prepare", *overrides, "data.files=[nothing/*.txt]"]) == 2
    assert main(["prepare", *overrides, "data.file=[a.txt]"]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 3
    assert "Traceback" not in said
    workplace.cache.write_text("a file")
    assert main(["prepare", *overrides]) == 1
    assert "data.cache_dir=" in capsys.readouterr().err


def test_too_little_for_a_sequence(overrides, capsys):
    assert main(["inspect", *overrides, "train.sequence=65536"]) == 2
    assert "train.sequence=" in capsys.readouterr().err


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "prepare" in capsys.readouterr().out
