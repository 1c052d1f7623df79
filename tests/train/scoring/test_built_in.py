"""Tasks made from source code: their answers are what the code says, and a run gets the same ones each time."""

import ast
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from common.errors import UserError
from scaling.record import read_record
from tests.support import console, small_runs
from train.scoring.built_in import BUILT_IN, make_task

SOURCES = sorted(Path(__file__).parents[3].glob("train/**/*.py"))
TEXTS = [path.read_text() for path in SOURCES]


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_right_choice_alone_is_what_the_text_goes_on_with(name):
    task = make_task(name, TEXTS)
    assert 20 <= len(task.questions) <= 200
    for question in task.questions:
        right = question.choices[question.answer]
        assert len(set(question.choices)) == len(question.choices)
        if name == "names":  # the question's order is not the text's
            said = question.question.removeprefix("# ").removesuffix("\ndef ")
            assert any(re.search(rf'def {re.escape(right)}[^)]*\)[^\n]*\n *"""{re.escape(said)}', text) for text in TEXTS)
        else:
            assert any(question.question + right in text for text in TEXTS)
    assert make_task(name, TEXTS) == task
    assert max(Counter(question.answer for question in task.questions).values()) < 0.6 * len(task.questions)


def test_brackets_are_closed_as_the_parser_says():
    task = make_task("brackets", TEXTS)
    assert set(Counter(question.choices[question.answer] for question in task.questions).values()) <= {
        len(task.questions) // 3,
        len(task.questions) // 3 + 1,
    }


def test_no_line_but_the_right_one_parses_where_the_block_ends():
    """Every wrong indentation is another program, or none."""
    text = TEXTS[SOURCES.index(Path(__file__).parents[3] / "train/data/shards.py")]
    task = make_task("indentation", [text])
    tree = ast.dump(ast.parse(text))
    for question in task.questions[:30]:
        start = text.index(question.question) + len(question.question)
        end = text.find("\n", start)
        for number, choice in enumerate(question.choices):
            try:
                same = ast.dump(ast.parse(text[:start] + choice + text[end:])) == tree
            except SyntaxError:
                same = False
            assert same == (number == question.answer)


def test_prose_has_too_few_questions():
    with pytest.raises(UserError, match="questions for 'brackets', 20 are needed"):
        make_task("brackets", ["It was a dark (and) stormy night.\n" * 50])


def test_a_run_and_the_command_answer_the_same_built_in_task(tmp_path):
    for path in SOURCES[:40]:
        (tmp_path / f"{path.parent.name}_{path.name}").write_bytes(path.read_bytes())
    words = [*small_runs.words(tmp_path, *small_runs.COLD), f"data.files=[{tmp_path}/*.py]", "data.validation_fraction=0.7"]
    answer = console.warm("train", "run.name=built", *words, "eval.tasks=[brackets]")
    assert answer.code == 0, answer.err
    answer = console.warm("evaluate", str(tmp_path / "runs" / "built"), "--tasks", "brackets", "--json")
    assert answer.code == 0, answer.err
    result, record = json.loads(answer.out), read_record(tmp_path / "runs" / "built")
    assert record.errors == result["errors"]
    score = result["tasks"]["brackets"]
    assert abs(score["accuracy"] - 1 / 3) < 4 * score["standard_error"]
