"""Keep the best documents of files of every kind."""

import hashlib
import json
import random

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from train.preselect import filter as filtering
from train.preselect.__main__ import main


@pytest.fixture
def corpus(tmp_path):
    """Three files of 100 documents and a text file; three documents are bad."""
    chance = random.Random(1)
    texts = [" ".join(chance.choices(["red", "green", "blue"], k=chance.randint(1, 40))) for _ in range(300)]
    lines = [json.dumps({"id": n, "text": text}) for n, text in enumerate(texts)]
    folder = tmp_path / "corpus"
    folder.mkdir()
    first = "\n".join(lines[:100]).encode()
    (folder / "a.jsonl").write_bytes(first + b'\n{"text": \n{"text": ""}\n{"text": "\xff"}\n')
    (folder / "b.jsonl.zst").write_bytes(zstandard.compress("\n".join(lines[100:200]).encode()))
    pyarrow.parquet.write_table(pyarrow.table({"id": range(200, 300), "text": texts[200:]}), folder / "c.parquet")
    (folder / "d.txt").write_text("yellow")
    return folder


def kept(out) -> list[dict]:
    rows = [json.loads(line) for line in (out / "a.jsonl").read_text().splitlines()]
    unpacked = zstandard.ZstdDecompressor().stream_reader((out / "b.jsonl.zst").read_bytes()).read()
    return (
        rows + [json.loads(line) for line in unpacked.splitlines()] + pyarrow.parquet.read_table(out / "c.parquet").to_pylist()
    )


def digests(out) -> dict[str, str]:
    files = sorted(path for path in out.rglob("*") if path.is_file() and ".work" not in path.parts)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(corpus, out, *more: str) -> int:
    return main(["filter", str(corpus / "*"), "--classifier", "random", "--out", str(out), *more])


def test_the_best_share_of_the_characters_is_kept(corpus, tmp_path, capsys):
    assert run(corpus, tmp_path / "kept", "--keep", "0.3") == 0
    rows = kept(tmp_path / "kept")
    everything = tmp_path / "all"
    assert run(corpus, everything, "--keep", "1") == 0
    ranked = sorted(kept(everything), key=lambda row: -row["score"])
    assert len(ranked) == 300
    sums = np.cumsum([len(row["text"]) for row in ranked])
    total = sums[-1] + len("yellow")
    needed = int(np.argmax(sums >= 0.3 * total)) + 1
    assert {row["id"] for row in rows} == {row["id"] for row in ranked[:needed]}
    assert (everything / "d.txt.jsonl").exists()
    bad = (everything / "bad.txt").read_text().splitlines()
    assert [line.split(": ")[0].rsplit(":")[-1] for line in bad] == ["101", "102", "103"]
    assert "3 bad documents" in capsys.readouterr().out


def test_a_killed_filter_goes_on_and_workers_change_nothing(corpus, tmp_path, monkeypatch):
    assert run(corpus, tmp_path / "whole", "--keep", "0.5") == 0
    broken, write = tmp_path / "broken", filtering._write_file

    def dies(*words):
        if words[-1] == 1:
            raise KeyboardInterrupt
        write(*words)

    monkeypatch.setattr(filtering, "_write_file", dies)
    with pytest.raises(KeyboardInterrupt):
        filtering.filter_files(request(corpus), broken, 1)
    assert not (broken / "filter.json").exists()
    monkeypatch.undo()
    assert run(corpus, broken, "--keep", "0.5") == 0
    assert digests(broken) == digests(tmp_path / "whole")
    assert run(corpus, tmp_path / "two", "--keep", "0.5", "--workers", "2") == 0
    assert digests(tmp_path / "two") == digests(tmp_path / "whole")
    assert run(corpus, broken, "--keep", "0.6") == 2  # another request


def request(corpus):
    kinds = {"a.jsonl": ".jsonl", "b.jsonl.zst": ".jsonl.zst", "c.parquet": ".parquet", "d.txt": ".txt"}
    files = tuple((str(corpus / name), kind) for name, kind in kinds.items())
    return filtering.Request(files, "random", "__label__1", "text", 0.5, None)


@pytest.mark.parametrize(
    "more, word",
    [
        (["--threshold", "2"], "nothing is kept: the highest"),
        (["--keep", "0"], "not a share"),
        ([], "give one of --keep"),
        (["--keep", "0.5", "--text-column", "body"], "body"),
        (["--keep", "0.5", "--classifier", "nowhere"], "there is no classifier"),
    ],
)
def test_bad_requests(corpus, tmp_path, capsys, more, word):
    assert run(corpus, tmp_path / "kept", *more) == 2
    assert word in capsys.readouterr().err


def test_the_threshold_is_exact():
    chance = np.random.default_rng(1)
    part = np.zeros(5000, filtering._DOCUMENT)
    part["score"], part["characters"] = chance.random(5000) ** 4, chance.integers(1, 1000, 5000)
    order = np.argsort(-part["score"], kind="stable")
    sums = np.cumsum(part["characters"][order], dtype=np.int64)
    for keep in (0.001, 0.1, 0.5, 1.0):
        expected = part["score"][order][np.argmax(sums >= keep * sums[-1])]
        assert filtering.threshold_of([part[:2000], part[2000:]], keep) == expected
