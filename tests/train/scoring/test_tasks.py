"""Tasks: the likeliest choice by hand, files with wrong lines, and the command."""

import json
import math

import numpy as np
import pytest

from common.errors import UserError
from scaling.record import EvaluationLine, StepLine, read_metrics, read_record
from tests.support import console, small_runs
from train.scoring.scorer import Scored
from train.scoring.tasks import Question, Task, read_tasks, score_task

GOOD = {"question": "2 + 2 =", "choices": [" 4", " 5"], "answer": 0}


ODDS = {"a": 0.5, "b": 0.3, "c": 0.2}


class LetterModel:
    """A unigram over letters that stands for a scorer: likelihoods are known in closed form."""

    def encode(self, text):
        return np.array([ord(letter) for letter in text], dtype=np.int64)

    def after_end_of_text(self, tokens, context=0):
        return Scored(np.concatenate(([0], tokens)), 1 + context)

    def log_likelihoods(self, sequences):
        return [sum(math.log(ODDS[chr(token)]) for token in scored.tokens[scored.first :]) for scored in sequences]


def test_the_likeliest_choice_is_the_answer_raw_and_per_character():
    questions = (
        Question("a", ("c", "aaa"), 0),  # 0.2 > 0.125, but per character 0.5 > 0.2
        Question("ab", ("b", "c"), 0),
        Question("", ("a", "b", "c"), 2),
    )
    score = score_task(LetterModel(), Task("letters", questions))
    assert (score.accuracy, score.accuracy_normalised) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert score.standard_error == pytest.approx(math.sqrt(2 / 9 / 2))
    assert score.chance == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "not a line of JSON"),
        ("[]", "no answer and no choices and no question"),
        (json.dumps(GOOD | {"question": 3}), "'question' is 3"),
        (json.dumps(GOOD | {"choices": [" 4"]}), "'choices' must be two or more"),
        (json.dumps(GOOD | {"choices": [" 4", " 4"]}), "'choices' must be two or more"),
        (json.dumps(GOOD | {"answer": 2}), "'answer' is 2, not an index from 0 to 1"),
        (json.dumps(GOOD | {"answer": True}), "'answer' is true"),
        (json.dumps({"question": "a", "choices": ["b", "c"]}), "no answer"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, said):
    path = tmp_path / "sums.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(UserError) as caught:
        read_tasks([str(path)])
    assert f"{path}:2: " in str(caught.value)
    assert said in str(caught.value)


def test_the_command_answers_a_task_near_chance_with_weights_that_know_nothing(tmp_path):
    run = small_runs.train(tmp_path, "cold", *small_runs.COLD)
    lines = [
        {"question": f"line {i} of", "choices": [f" {i * 37 % 90}", f" {i * 53 % 90 + 100}"], "answer": i % 2}
        for i in range(60)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answer = console.warm("evaluate", str(run), "--tasks", str(tmp_path / "sums.jsonl"), "--json")
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    score = result["tasks"]["sums"]
    assert result["errors"] == {"sums": pytest.approx(1 - score["accuracy"])}
    assert abs(score["accuracy"] - score["chance"]) < 4 * score["standard_error"]
    answer = console.warm("evaluate", str(run), "--tasks", str(tmp_path / "none.jsonl"))
    assert (answer.code, "cannot read the task" in answer.err) == (2, True)


def test_a_run_evaluates_tasks_and_its_record_has_their_errors(tmp_path):
    """The same errors as the command gives, and the same losses as without tasks."""
    lines = [{"question": f"line {i} of", "choices": [" é", " zzz"], "answer": 0} for i in range(5)]
    path = tmp_path / "next.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with_tasks = small_runs.train(tmp_path, "with", *small_runs.HOT, f"eval.tasks=[{path}]")
    without = small_runs.train(tmp_path, "without", *small_runs.HOT)
    answer = console.warm("evaluate", str(with_tasks), "--tasks", str(path), "--json")
    record, result = read_record(with_tasks), json.loads(answer.out)
    assert record.standard_errors == {"next": result["tasks"]["next"]["standard_error"]}
    assert record.errors == result["errors"]
    assert [line.errors for line in read_metrics(with_tasks) if isinstance(line, EvaluationLine)][-1] == record.errors
    losses = [[line.loss for line in read_metrics(run) if isinstance(line, StepLine)] for run in (with_tasks, without)]
    assert losses[0] == losses[1]
    assert record.loss == read_record(without).loss


def test_a_wrong_task_ends_a_run_before_it_begins(tmp_path):
    (tmp_path / "text.txt").write_text(small_runs.TEXT)
    (tmp_path / "bad.jsonl").write_text("{}\n")
    answer = console.warm("train", "run.name=bad", *small_runs.words(tmp_path), f"eval.tasks=[{tmp_path}/bad.jsonl]")
    assert (answer.code, "bad.jsonl:1: no answer" in answer.err) == (2, True)
