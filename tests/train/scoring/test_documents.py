"""Scores of documents: what transformers computes on the exported model, on every layout, in any order."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.support import console, scored_texts, small_runs
from train.trained.export_huggingface import export_huggingface
from train.trained.scoring import read_run_tokenizer

TEXTS = ["line 7 of é", "漢字\t\n  two  spaces", "a", "", "and more " * 40, *(f"line {i} of {i * i}\n" for i in range(9))]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def run(place) -> Path:
    return small_runs.train(place, "run", *small_runs.HOT, "model.num_heads=2")


@pytest.fixture(scope="module")
def scores(group, run) -> list[float]:
    return group(1).run(scored_texts.nats, str(run), [], TEXTS)[0]


def test_scores_are_those_of_transformers_on_the_exported_model(run, scores, tmp_path):
    from transformers import AutoModelForCausalLM

    export_huggingface(run, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").double()
    tokenizer, end_of_text = read_run_tokenizer(run)

    def log_probabilities(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].log_softmax(-1)

    assert max(len(tokenizer.encode(text).ids) for text in TEXTS) > 64  # several windows
    for text, found in zip(TEXTS, scores, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        expected = 0.0
        for target in range(len(ids)):
            # Windows of 32 begin every 16 tokens, the end-of-text token included; the first to end past a target scores it.
            window = max(0, -(-(target + 1 - 32) // 16)) * 16
            before = ids[max(0, window - 1) : target] or [end_of_text]
            expected -= float(log_probabilities(before)[-1, ids[target]])
        assert found == pytest.approx(expected, abs=1e-4 * max(1, len(ids)))


def test_neither_order_nor_company_changes_a_score(group, run, scores):
    backwards = group(1).run(scored_texts.nats, str(run), [], TEXTS[::-1])[0]
    assert backwards[::-1] == pytest.approx(scores, abs=1e-4)
    assert group(1).run(scored_texts.nats, str(run), [], TEXTS[4:5])[0] == pytest.approx(scores[4:5], abs=1e-4)


@pytest.mark.parametrize("axes", [["tensor"], ["pipeline"], ["context"], ["shard"]], ids="_".join)
def test_scores_are_the_same_on_every_layout(group, run, scores, axes):
    found = group(2).run(scored_texts.nats, str(run), [f"parallel.{axis}=2" for axis in axes], TEXTS)
    for rank in found:
        assert rank == pytest.approx(scores, abs=1e-4)


def test_the_command_gives_bits_of_every_document(run, scores, tmp_path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS if text))
    words = ["evaluate", str(run), "--files", str(tmp_path / "*.jsonl"), "--text-column", "body", "--per-document", "--json"]
    answer = console.warm(*words)
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    kept = [(text, nats) for text, nats in zip(TEXTS, scores, strict=True) if text]
    assert len(result["documents"]) == len(kept)
    for (text, nats), document in zip(kept, result["documents"], strict=True):
        assert document["bits_per_character"] == pytest.approx(nats / math.log(2) / len(text), abs=1e-4)
        assert document["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text.encode()), abs=1e-4)
    total = sum(nats for _, nats in kept)
    assert result["bits_per_byte"] == pytest.approx(total / math.log(2) / sum(len(text.encode()) for text, _ in kept), abs=1e-4)


def test_requests_that_cannot_be_scored_are_refused(run, tmp_path):
    answer = console.warm("evaluate", str(run), "--per-document")
    assert (answer.code, "--files" in answer.err) == (2, True)
    answer = console.warm("evaluate", str(run), "--files", str(tmp_path / "none.txt"))
    assert (answer.code, "no file matches" in answer.err) == (2, True)
    (tmp_path / "blank.txt").write_text(" \n")
    answer = console.warm("evaluate", str(run), "--files", str(tmp_path / "blank.txt"))
    assert (answer.code, "no text to score" in answer.err) == (2, True)
