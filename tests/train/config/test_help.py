"""`--help`, `--cfg job` and refusals, as commands: without torch, which takes seconds to import."""

import os
import subprocess
import sys

import pytest
import yaml

from train.config import load_config, parse_config
from train.config.compose import known_keys
from train.config.help import help_text

# Runs `python -m MODULE WORDS...` and tells on file descriptor 3 what heavy modules it has imported.
RUNNER = """
import atexit, os, runpy, sys
heavy = ("torch", "numpy", "pandas", "matplotlib", "pyarrow", "tokenizers")
atexit.register(lambda: os.write(3, " ".join(name for name in heavy if name in sys.modules).encode()))
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


class Answer:
    def __init__(self, *words: str, **variables: str) -> None:
        reading, writing = os.pipe()
        command = [sys.executable, "-c", f"import os; os.dup2({writing}, 3)\n{RUNNER}", *words]
        ended = subprocess.run(
            command, capture_output=True, text=True, pass_fds=[writing], env={**os.environ, **variables}, timeout=60
        )
        os.close(writing)
        with os.fdopen(reading) as stream:
            self.imported = stream.read()
        self.code, self.out, self.err = ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize("words", [["train", "--help"], ["train", "-h"], ["train", "--cfg", "job", "parallel.shard=2"]])
def test_questions_are_answered_without_torch(words):
    answer = Answer(*words)
    assert (answer.code, answer.err, answer.imported) == (0, "", "")


def test_cfg_is_the_configuration_the_words_come_to():
    answer = Answer("train", "run.name=x", "--cfg", "job", "parallel.shard=2", "train.steps=5")
    assert parse_config(yaml.safe_load(answer.out)) == load_config(["run.name=x", "parallel.shard=2", "train.steps=5"])


def test_rules_are_checked_before_torch_and_any_process_group():
    answer = Answer("train", "parallel.shard=2", 'run.dir="a b"')
    assert (answer.code, answer.out, answer.imported) == (2, "", "")
    assert answer.err.startswith("error: the layout shard 2 needs 2 processes, there is 1.")
    assert """foretrain train parallel.shard=2 'run.dir="a b"'""" in answer.err


def test_a_rank_that_is_not_the_first_refuses_in_silence():
    ranks = {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    first, second = (Answer("train", "parallel.shard=2", RANK=rank, LOCAL_RANK=rank, **ranks) for rank in "01")
    assert (first.code, second.code) == (2, 2)
    assert first.err.startswith("error: 3 processes were started")
    assert second.err == ""
    assert second.imported == ""


@pytest.mark.parametrize("words", [["--hepl"], ["--cfg", "hydra"], ["run.name=a", "-x"]])
def test_an_unknown_question_is_refused(words):
    answer = Answer("train", *words)
    assert answer.code == 2
    assert answer.err.startswith("error: ")
    assert "Traceback" not in answer.err


def test_help_explains_every_key():
    lines = [line.split() for line in help_text().splitlines() if line.startswith("  ") and " = " in line]
    explained = {words[0]: words[3:] for words in lines}
    keys = {key for key in known_keys() if "." in key and key.split(".")[1] != "name"} | {"run.name"}
    assert set(explained) == keys
    assert all(len(words) >= 2 for words in explained.values()), "every key has a meaning"
    assert "None" not in help_text()
