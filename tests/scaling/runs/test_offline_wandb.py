"""Runs that wandb recorded offline, read without wandb."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from scaling.runs.offline_wandb import wandb_row
from scaling.runs.read import read_runs

OFFLINE = Path(__file__).parent / "offline_wandb"
"""Two runs as wandb 0.31 wrote them: {"model": {"parameters": 1e7 / loss}, "tokens": 1e9}, and three values of val/loss."""


def test_offline_wandb_directories():
    frame = read_runs([OFFLINE], ["loss=val_loss", "parameters=model_parameters"]).sort_values("loss")
    assert frame["name"].tolist() == ["large", "small"]
    assert frame["loss"].tolist() == [3.0, 4.0]
    assert frame["status"].tolist() == ["finished", "finished"]
    np.testing.assert_allclose(frame["parameters"], [1e7 / 3, 1e7 / 4])
    np.testing.assert_allclose(frame["flops"], 6 * frame["parameters"] * 1e9)


def test_a_wandb_file_that_a_crash_cut_off_is_a_run_that_goes_on(tmp_path):
    whole = next(OFFLINE.rglob("*.wandb")).read_bytes()
    for length in range(7, len(whole), 50):
        (tmp_path / "run-x.wandb").write_bytes(whole[:length])
        row = wandb_row(tmp_path / "run-x.wandb")
        assert row["status"] in ("running", "finished")


def test_a_wandb_record_may_go_over_several_blocks(tmp_path):
    """LevelDB's log: a block of 32,768 bytes ends within a record of 100,000."""
    value = json.dumps("x" * 100_000).encode()
    item = b"\x0a\x04text" + b"\x82\x01" + varint(len(value)) + value
    config = b"\x0a" + varint(len(item)) + item
    record = b"\x2a" + varint(len(config)) + config
    log, kinds = b":W&B\x00\x00\x00", []
    while record:
        room = 32_768 - len(log) % 32_768 - 7
        piece, record = record[:room], record[room:]
        kinds.append(2 if not kinds else 3 if record else 4)
        log += bytes(4) + len(piece).to_bytes(2, "little") + bytes([kinds[-1]]) + piece
    (tmp_path / "run-x.wandb").write_bytes(log)
    assert kinds == [2, 3, 3, 4]
    assert wandb_row(tmp_path / "run-x.wandb")["text"] == "x" * 100_000


def varint(number):
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


@pytest.mark.parametrize(
    "content, message",
    [(b"hello", "is not a file of wandb's"), (b":W&B\x00\x00\x00" + bytes(4) + b"\x02\x00\x01\x0b\x00", "is damaged")],
)
def test_a_file_that_only_looks_like_wandbs(tmp_path, content, message):
    (tmp_path / "run-x.wandb").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_runs([tmp_path])
