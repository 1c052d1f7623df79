"""The `foretrain` command and the start of workers."""

import importlib
import sys

import pytest

from launch import cli, local


@pytest.fixture
def foretrain(monkeypatch, capsys):
    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["foretrain", *words])
        code = cli.main()
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_help_names_every_command(foretrain):
    code, out, err = foretrain("--help")
    assert (code, err) == (0, "")
    assert all(name in out for name in cli.COMMANDS)
    assert foretrain() == (2, out, "")


def test_every_command_exists():
    for place, _ in cli.COMMANDS.values():
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_an_unknown_command_names_the_nearest(foretrain):
    code, out, err = foretrain("trian")
    assert (code, out) == (2, "")
    assert err.startswith("error: no command 'trian'; did you mean 'train'?")
    assert foretrain("xyz")[2] == f"error: no command 'xyz' (all commands: {', '.join(cli.COMMANDS)})\n"


def test_the_layout_decides_how_many_processes_are_started(foretrain, monkeypatch):
    started = []
    monkeypatch.setattr(local, "start_workers", lambda size, *rest: started.append((size, *rest)) or 5)
    words = ["parallel.shard=2", "parallel.replicate=3", "train.batch_tokens=12288", "parallel.oversubscribe=true"]
    assert foretrain("train", *words)[0] == 5
    assert started == [(6, "train", words)]


def test_a_wrong_request_starts_nothing(foretrain, monkeypatch):
    monkeypatch.setattr(local, "start_workers", lambda *words: pytest.fail("started"))
    code, out, err = foretrain("train", "parallel.shard=2", "train.batch_tokens=100", "model.num_kv_heads=3")
    assert (code, out) == (2, "")
    assert err.count("error: ") == 1
    assert len(err.splitlines()) == 2
    assert foretrain("train", "parallel.shrad=2")[0] == 2


def test_under_torchrun_it_is_one_of_the_workers(foretrain, monkeypatch):
    """It must not start workers of its own: three processes were started for a layout of two."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(local, "start_workers", lambda *words: pytest.fail("started"))
    code, _, err = foretrain("train", "parallel.shard=2")
    assert code == 2
    assert "3 processes were started" in err


def test_more_processes_of_torchrun_than_cores_are_warned_of(foretrain, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1000", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1000"}.items():
        monkeypatch.setenv(name, value)
    words = ["train", "parallel.shard=1000", "train.batch_tokens=2048000", "train.dry_run=true"]
    monkeypatch.setattr("train.build.dry_run.show", lambda config: None)
    assert "warning: 1,000 processes on" in foretrain(*words)[2]
    assert "parallel.oversubscribe=true" in foretrain(*words)[2]
    assert "warning" not in foretrain(*words, "parallel.oversubscribe=true")[2]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert "warning" not in foretrain(*words)[2]
