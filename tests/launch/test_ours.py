"""A file of somebody's with the name of one of our packages is not run in its place."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import ours
from tests.support import console

HOSTILE = "import pathlib; pathlib.Path(__file__).with_name('was_run').touch(); raise SystemExit(7)\n"


@pytest.fixture
def hostile(tmp_path, monkeypatch) -> Path:
    """A folder on PYTHONPATH, before everything else, with a file for each of our packages."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in ours.PACKAGES - {"launch"}:  # the console script imports that one before we can say a word
        (folder / f"{name}.py").write_text(HOSTILE)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', ours.ROOT)}")
    return folder


@pytest.mark.parametrize(
    "words", [["train", "--help"], ["data", "--help"], ["schedule", "--help"], ["generate", "--help"], ["scaling", "--help"]]
)
def test_no_command_runs_it(hostile, words, monkeypatch):
    monkeypatch.chdir(hostile.parent)
    answer = console.real(*words)
    assert answer.code == 0, answer.err
    assert not (hostile / "was_run").exists()


def test_no_worker_runs_it(hostile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = console.real("train", "parallel.shard=2", "data=files", f"data.files=[{tmp_path}/no.txt]", f"run.dir={tmp_path}")
    answer.assert_refused("no.txt")
    assert not (hostile / "was_run").exists()


def test_under_torchrun_the_command_is_named(hostile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torchrun = (str(console.COMMAND.with_name("torchrun")), "--no-python", "--nproc-per-node", "1")
    words = [str(console.COMMAND), "train", "data=files", f"data.files=[{tmp_path}/no.txt]", f"run.dir={tmp_path}"]
    assert "no.txt" in console.real(*words, command=torchrun).err
    assert not (hostile / "was_run").exists()


def test_it_is_run_where_we_are_not_asked(hostile):
    """What the other tests would see if the file were taken."""
    # In another folder: -m looks into the working directory first, which has our packages here.
    asked = subprocess.run([sys.executable, "-m", "train"], check=False, capture_output=True, cwd=hostile.parent)
    assert asked.returncode == 7
    assert (hostile / "was_run").exists()
