"""The folder of a run: one writer, no other run overwritten, nothing left by a run that never began."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from tests.support.records import RECORD, STEP
from tests.support.run_folders import carry_out
from train.config import Config, load_config
from train.folder import directory as directory_module
from train.folder.directory import RunDirectory
from train.folder.reading import load_run_config

HOLDER = """
import sys, time
from train.config import load_config
from train.folder.directory import RunDirectory
directory = RunDirectory(load_config(sys.argv[1:]))
print("held", flush=True)
time.sleep(1000)
"""


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch):
    monkeypatch.setattr(directory_module, "LOCK_WAIT_SECONDS", 0.2)


@pytest.fixture
def shards(tmp_path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "index.json").write_text('{"bigram_loss": 1.0}')
    return folder


@pytest.fixture
def configure(tmp_path):
    """The configuration of a run in a folder of its own, with overrides."""

    def make(*overrides: str) -> Config:
        return load_config([f"run.dir={tmp_path}/runs", "run.name=a", *overrides])

    return make


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "runs" / "a"


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file() and file.name != ".lock"
    }


def test_a_run_writes_what_the_design_lists(configure, shards, path):
    carry_out(configure(), shards)
    written = {file.name for file in path.iterdir()} - {".lock"}
    assert written == {"config.yaml", "run.json", "metrics.jsonl", "tokenizer.json", "data.json"}
    assert json.loads((path / "run.json").read_text())["status"] == "finished"
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data=files", "data.files=['a b.txt','*.jsonl']", 'data.document_separator="\\n---\\u2028é: #\\n"'],
        ["tokenizer=file", "tokenizer.path=yes", "schedule=constant", "run.dir=null_", "train.steps=7", "run.name=1"],
        ["optimizer.eps=1e-30", "schedule.peak=0.1", "model.rope_theta=1e30", "run.seed=18446744073709551615"],
    ],
    ids=["defaults", "text", "words", "numbers"],
)
def test_the_configuration_comes_back_equal(tmp_path, shards, overrides):
    config = load_config([f"run.dir={tmp_path}/runs", *(word for word in overrides if not word.startswith("run.dir"))])
    carry_out(config, shards)
    loaded = load_run_config(tmp_path / "runs" / config.run.name)
    assert loaded == config
    assert loaded.identity_hash() == config.identity_hash()


def test_a_finished_run_is_known_by_its_record(configure, shards):
    record = carry_out(configure(), shards)
    directory = RunDirectory(configure())
    assert directory.finished
    assert directory.existing == record
    directory.close()


def test_what_does_not_change_the_losses_does_not_make_it_another_run(configure, shards):
    carry_out(configure(), shards)
    same = ["parallel.shard=4", "train.microbatch=1", "train.compile=true", "data.cache_dir=elsewhere", "eval.every_tokens=5"]
    directory = RunDirectory(configure(*same))
    assert directory.finished
    directory.close()


@pytest.mark.parametrize("status", ["running", "failed", "preempted"])
def test_an_unfinished_run_starts_over(configure, shards, path, status):
    carry_out(configure(), shards, status)
    directory = RunDirectory(configure())
    assert directory.existing is not None
    assert not directory.finished
    directory.begin(replace(RECORD), shards)
    assert (path / "metrics.jsonl").read_text() == ""
    directory.append(STEP)
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 1
    directory.close()


def test_another_run_of_that_name_is_refused_with_the_difference_and_stays(configure, shards, path):
    carry_out(configure("model.num_layers=3"), shards)
    before = contents(path)
    with pytest.raises(UserError) as caught:
        RunDirectory(configure("model.num_layers=2", "run.seed=1"))
    lines = str(caught.value).splitlines()
    assert str(path) in lines[0]
    assert "run.name" in lines[0]
    assert sorted(line.strip() for line in lines[1:]) == [
        "model.num_layers: was 3, is 2",
        "run.seed: was 0, is 1",
    ]
    assert contents(path) == before


def test_many_and_long_differences_fit_a_message(configure, shards):
    carry_out(configure("data=files", "data.files=[a.txt]", 'data.document_separator="\\n\\n\\n"'), shards)
    with pytest.raises(UserError) as caught:
        RunDirectory(configure("train.precision=fp64", "train.sequence=128", "schedule=constant"))
    assert len(str(caught.value).splitlines()) <= 5
    assert str(caught.value).endswith("more keys")


def test_never_refuses_an_existing_name(configure, shards, path):
    carry_out(configure(), shards)
    before = contents(path)
    with pytest.raises(UserError, match=r"run\.resume=never"):
        RunDirectory(configure("run.resume=never"))
    assert contents(path) == before
    RunDirectory(configure("run.resume=never", "run.name=b")).close()


CORRUPT = [b"", b"{", b"- 1\n- 2\n", b"\xff\xfe", b"3", b"a: [", b"schema: 1"]


@pytest.mark.parametrize("content", CORRUPT)
def test_a_run_of_unknown_configuration_is_refused_and_stays(configure, shards, path, content):
    carry_out(configure(), shards)
    (path / "config.yaml").write_bytes(content)
    before = contents(path)
    with pytest.raises(UserError) as caught:
        RunDirectory(configure())
    assert "config.yaml" in str(caught.value)
    assert "delete" not in str(caught.value)
    assert "run.name" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5
    assert contents(path) == before


@pytest.mark.parametrize("content", [*CORRUPT, None])
def test_a_corrupt_record_is_rebuilt_from_what_else_there_is(configure, shards, path, content):
    record = carry_out(configure(), shards)
    (path / "run.json").unlink() if content is None else (path / "run.json").write_bytes(content)
    directory = RunDirectory(configure())
    assert directory.damage is not None
    assert "run.json" in directory.damage
    found = directory.existing
    assert found is not None
    assert (found.status, found.seed, found.schedule, found.started > "2026") == ("running", record.seed, "wsd", True)
    assert found.wall_seconds == STEP.step_seconds
    directory.close()


def test_an_unknown_key_in_a_stored_configuration_is_named(configure, shards, path):
    carry_out(configure(), shards)
    plain = yaml.safe_load((path / "config.yaml").read_text())
    plain["model"]["experts"] = 8
    (path / "config.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(UserError, match=r"model\.experts"):
        load_run_config(path)


def test_a_run_that_never_began_leaves_nothing(configure, path):
    RunDirectory(configure()).close()
    assert not path.exists()


def test_nothing_of_somebody_elses_is_removed(configure, path):
    path.mkdir(parents=True)
    (path / "notes.txt").write_text("mine")
    RunDirectory(configure()).close()
    assert (path / "notes.txt").read_text() == "mine"


def test_what_a_killed_start_left_is_removed_with_the_next_that_never_begins(configure, path):
    path.mkdir(parents=True)
    (path / ".lock").write_text("")
    RunDirectory(configure()).close()
    assert not path.exists()


def test_beginning_on_a_full_disk_leaves_nothing(configure, shards, path, monkeypatch):
    directory = RunDirectory(configure())

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory_module, "write_record", fail)
    with pytest.raises(OSError, match="No space"):
        directory.begin(replace(RECORD), shards)
    directory.close()
    assert not path.exists()


def test_a_place_that_cannot_be_written_gives_a_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Not a directory; choose another run\.dir"):
        RunDirectory(load_config([f"run.dir={tmp_path}/file/runs"]))


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    directory = RunDirectory(load_config(["run.dir='~/runs'", "run.name=a"]))
    assert directory.path == tmp_path / "runs" / "a"
    directory.close()


def test_a_second_process_is_refused_and_a_killed_holder_holds_nothing(configure, path):
    overrides = [f"run.dir={path.parent}", "run.name=a"]
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, *overrides], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError) as caught:
            RunDirectory(configure())
        for word in (str(path), f"process {holder.pid}", socket.gethostname(), "run.name"):
            assert word in str(caught.value)
        assert caught.value.exit_code == 2
        assert path.exists()
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    directory = RunDirectory(configure())
    assert str(os.getpid()) in (path / ".lock").read_text()
    directory.close()


def test_one_that_waited_for_a_run_that_never_began_gets_a_folder_of_its_own(configure, shards, path, monkeypatch):
    """The first removes the folder, with the lock in it that the second waits for."""
    monkeypatch.setattr(directory_module, "LOCK_WAIT_SECONDS", 30.0)
    first = RunDirectory(configure())
    waiting = threading.Event()
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: (waiting.set(), sleep(0.01)))
    got: list[RunDirectory] = []
    thread = threading.Thread(target=lambda: got.append(RunDirectory(configure())))
    thread.start()
    assert waiting.wait(30)
    first.close()
    thread.join(30)
    (second,) = got
    assert json.loads((path / ".lock").read_text())["process"] == os.getpid()
    second.begin(replace(RECORD), shards)
    second.close()
    assert asdict(load_run_config(path)) == asdict(configure())


def test_a_damaged_lock_file_still_names_somebody(configure, path):
    first = RunDirectory(configure())
    (path / ".lock").write_text("{")
    with pytest.raises(UserError, match="in use by another process"):
        RunDirectory(configure())
    first.close()
