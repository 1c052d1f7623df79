"""Downstream tasks: questions with choices, answered with the choice that is likeliest.

A task is a file of JSON lines {"question": text, "choices": [text, ...], "answer": index of the right one}; the text of a
choice follows the question's directly, so a space between them stands in one of the two.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from train.scoring.scorer import Scored, Scorer

_FORM = 'a line is {"question": "2 + 2 =", "choices": [" 4", " 5"], "answer": 0}'


@dataclass(frozen=True)
class Question:
    """One question."""

    question: str
    choices: tuple[str, ...]
    answer: int
    """the index of the right choice"""


@dataclass(frozen=True)
class Task:
    """A named list of questions."""

    name: str
    questions: tuple[Question, ...]

    @property
    def chance(self) -> float:
        """The expected accuracy of random answers."""
        return sum(1 / len(question.choices) for question in self.questions) / len(self.questions)


@dataclass(frozen=True)
class TaskScore:
    """Shares of right answers."""

    questions: int
    accuracy: float
    """of the choice with the highest log-likelihood"""
    accuracy_normalised: float
    """of the choice with the highest log-likelihood per character"""
    standard_error: float
    """of `accuracy`, sqrt(p (1 - p) / (n - 1)); 0 for one question"""
    chance: float

    def as_dict(self) -> dict[str, float]:
        """All numbers, for JSON."""
        return asdict(self)


def read_tasks(files: Iterable[str]) -> list[Task]:
    """Tasks from files, each named after its file without the suffix.

    Raises:
        UserError: a file cannot be read or has a wrong line, which the message names; two files give one name.
    """
    tasks: dict[str, Task] = {}
    for file in files:
        path = Path(file).expanduser()
        if path.stem in tasks:
            raise UserError(f"two tasks are named {path.stem}: rename {path}")
        tasks[path.stem] = _read(path)
    return list(tasks.values())


def score_task(scorer: Scorer, task: Task) -> TaskScore:
    """Answer every question. A collective.

    The log-likelihoods of a question's choices are those of the text from the first token on that is not the same for all of
    them, so that they can be compared even where the tokenizer joins the end of the question with a choice.
    """
    sequences: list[Scored] = []
    for question in task.questions:
        sequences += _sequences(scorer, question)
    likelihoods = iter(scorer.log_likelihoods(sequences))
    right = right_normalised = 0
    for question in task.questions:
        raw = np.array([next(likelihoods) for _ in question.choices])
        right += int(raw.argmax() == question.answer)
        per_character = raw / [len(choice) for choice in question.choices]
        right_normalised += int(per_character.argmax() == question.answer)
    number = len(task.questions)
    accuracy = right / number
    error = math.sqrt(accuracy * (1 - accuracy) / (number - 1)) if number > 1 else 0.0
    return TaskScore(number, accuracy, right_normalised / number, error, task.chance)


def _sequences(scorer: Scorer, question: Question) -> list[Scored]:
    prompt = scorer.encode(question.question).tolist()
    whole = [scorer.encode(question.question + choice) for choice in question.choices]
    shared = min(
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, tokens, strict=False))) for tokens in whole
    )
    return [scorer.after_end_of_text(tokens, shared) for tokens in whole]


def _read(path: Path) -> Task:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the task {path}: {reason}\na task is a file of JSON lines; {_FORM}") from None
    questions = tuple(_question(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip())
    if not questions:
        raise UserError(f"the task {path} has no questions; {_FORM}")
    return Task(path.stem, questions)


def _question(line: str, place: str) -> Question:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not a line of JSON ({error}); {_FORM}") from None
    keys = {"question", "choices", "answer"}
    if not isinstance(record, dict) or not keys <= record.keys():
        missing = sorted(keys - record.keys()) if isinstance(record, dict) else sorted(keys)
        raise UserError(f"{place}: no {' and no '.join(missing)}; {_FORM}")
    question, choices, answer = record["question"], record["choices"], record["answer"]
    if not isinstance(question, str):
        raise UserError(f"{place}: 'question' is {json.dumps(question)}, not a text; {_FORM}")
    is_list = isinstance(choices, list) and all(isinstance(choice, str) and choice for choice in choices)
    if not is_list or len(set(choices)) < max(2, len(choices)):
        raise UserError(f"{place}: 'choices' must be two or more different texts, none of them empty; {_FORM}")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise UserError(f"{place}: 'answer' is {json.dumps(answer)}, not an index from 0 to {len(choices) - 1}; {_FORM}")
    return Question(question, tuple(choices), answer)
