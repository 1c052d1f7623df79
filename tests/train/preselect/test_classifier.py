"""The classifier of good documents."""

import json
import random
import string

import pytest

from train.preselect.__main__ import main
from train.preselect.classifier import MIN_BUCKET, Hyperparameters, open_classifier, train_classifier

pytest.importorskip("fasttext", reason="the extra `preselect` is not installed")
SMALL = Hyperparameters(bucket=MIN_BUCKET)


def texts(words: list[str], length: int, count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(words, k=length)) for _ in range(count)]


def test_length_alone_does_not_move_a_score(tmp_path):
    """Both classes have the same words; one is long."""
    words = list(string.ascii_lowercase) * 4
    train_classifier(texts(words, 60, 1000, 1), texts(words, 8, 1000, 2), tmp_path / "c", SMALL)
    score = open_classifier(tmp_path / "c")
    means = [sum(map(score, texts(words, length, 40, 3))) / 40 for length in (8, 60, 400)]
    assert max(means) - min(means) < 0.05


def test_train_from_files(tmp_path, capsys):
    """Words tell the classes apart; the command says which. The same seed gives the same classifier."""
    common = [f"common{i}" for i in range(20)]
    for name, own, seed in (("good", "theorem", 1), ("bad", "casino", 2)):
        lines = [json.dumps({"text": f"{text}\n{own}"}) for text in texts([*common, own], 20, 200, seed)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    words = ["train", "--positives", str(tmp_path / "good.jsonl"), "--negatives", str(tmp_path / "bad.jsonl")]
    for out in ("one", "two"):
        assert main([*words, "--bucket", str(MIN_BUCKET), "--out", str(tmp_path / out)]) == 0
    said = capsys.readouterr().out
    assert "accuracy on 40 held-out documents: 1.000" in said
    assert "words for: theorem" in said
    assert "words against: casino" in said
    assert (tmp_path / "one/classifier.bin").read_bytes() == (tmp_path / "two/classifier.bin").read_bytes()
    assert main([*words, "--out", str(tmp_path / "one")]) == 2  # in use
    (tmp_path / "bad.jsonl").write_text('{"text": "one"}')
    assert main([*words, "--out", str(tmp_path / "three")]) == 2
    assert "1 negative documents" in capsys.readouterr().err
    assert not (tmp_path / "three").exists()
