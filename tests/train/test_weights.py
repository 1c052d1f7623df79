"""Saved weights: what was saved or a message."""

import json
import resource
import subprocess
import sys

import pytest
import torch

from train.errors import UserError
from train.weights import load_weights, save_weights

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2], dtype=torch.int64)}


@pytest.fixture
def run(tmp_path):
    save_weights(iter(WEIGHTS.items()), tmp_path, step=184, tokens=100)
    return tmp_path


@pytest.fixture
def folder(run):
    return run / "checkpoints" / "step_00000184"


def test_what_was_saved_is_loaded(run, folder):
    loaded = load_weights(run)
    assert loaded.keys() == WEIGHTS.keys()
    assert all(torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in WEIGHTS.items())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["step"], manifest["tokens"]) == (184, 100)
    assert manifest["files"]["model.safetensors"]["bytes"] == (folder / "model.safetensors").stat().st_size
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.safetensors"]


def test_slices_are_saved_as_what_they_show(tmp_path):
    big = torch.arange(100.0).view(10, 10)
    save_weights(iter({"t": big.t(), "part": big[2:4, 3:5]}.items()), tmp_path, step=1, tokens=1)
    loaded = load_weights(tmp_path)
    assert torch.equal(loaded["t"], big.t())
    assert torch.equal(loaded["part"], big[2:4, 3:5])


def test_the_newest_weights_count(run):
    save_weights(iter({"a": torch.zeros(1)}.items()), run, step=200, tokens=110)
    assert load_weights(run).keys() == {"a"}


def test_a_rank_without_a_folder_gathers_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = []
    save_weights((drawn.append(name) or (name, tensor) for name, tensor in WEIGHTS.items()), None, step=1, tokens=1)
    assert drawn == list(WEIGHTS)
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_bit_is_refused(run, folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load_weights(run)


def test_a_cut_file_is_refused(run, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged"):
        load_weights(run)


def test_a_missing_file_is_refused(run, folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(run)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"files": {}}', '{"files": {"model.safetensors": {}}}', "null"])
def test_a_broken_manifest_is_refused(run, folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(run)


def test_a_folder_without_a_manifest_does_not_count(run, folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="no saved weights"):
        load_weights(run)


def test_no_run_at_all(tmp_path):
    with pytest.raises(UserError, match="no saved weights"):
        load_weights(tmp_path / "nothing")


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from train.weights import save_weights
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    save_weights(iter({"a": torch.zeros(100_000)}.items()), Path(sys.argv[1]), step=1, tokens=1)
except OSError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on the size of files here")
def test_a_full_disk_is_an_os_error_and_leaves_nothing_that_counts(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), "10000"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 7, ended.stderr
    assert "model.safetensors" in ended.stdout
    assert list((tmp_path / "checkpoints").iterdir()) == []
