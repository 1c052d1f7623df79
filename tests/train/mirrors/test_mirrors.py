"""What wandb and TensorBoard have, read by their own readers, is the record: through a kill and another start."""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from scaling.record import EvaluationLine, StepLine, line_text, read_metrics
from scaling.runs.offline_wandb import _records
from tests.support import console
from tests.support.letters import corpus_of_letters
from train.mirrors.follow import Follower
from train.mirrors.tags import values_of

RUN = [
    *("model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "model.ffn_size=32", "model.vocab_size=260"),
    *("train.sequence=32", "train.batch_tokens=256", "train.microbatch=4", "checkpoint.every_tokens=2560", "eval.tokens=512"),
    *("eval.every_tokens=7680", "schedule.warmup_tokens=512", "logger=[wandb,tensorboard]"),
]


def wandb_rows(run: Path) -> list[dict]:
    """By wandb's own message classes."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for path in sorted((run / "mirrors" / "wandb").glob("offline-run-*/run-*.wandb")):
        for text in _records(path.read_bytes()):
            record = Record.FromString(text)
            if record.HasField("history"):
                items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
                rows.append(items)
    return rows


def tensorboard_values(run: Path) -> dict[tuple[str, int], list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(run / "mirrors" / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    found: dict[tuple[str, int], list[float]] = {}
    for tag in reader.Tags()["scalars"]:
        for event in reader.Scalars(tag):
            found.setdefault((tag, event.step), []).append(event.value)
    return found


@pytest.mark.slow
def test_a_run_that_is_killed_and_goes_on_is_one_run_in_both_and_equal_to_its_record(tmp_path):
    run = tmp_path / "runs" / "m"
    words = [f"run.dir={tmp_path}/runs", "run.name=m", *corpus_of_letters(tmp_path, 300), *RUN]
    first = console.start("train", *words, "train.steps=100000", "schedule=constant")
    try:
        deadline = time.monotonic() + 120
        while not wandb_started(run) or len(list(run.glob("checkpoints/*/manifest.json"))) < 2:
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(2.0)
        os.kill(first.pid, signal.SIGKILL)
    finally:
        first.kill()
        first.communicate()
    time.sleep(5.0)  # its mirrors see the end of their input
    sent = len(wandb_rows(run))
    assert sent > 0
    steps = max(line.step for line in read_metrics(run)) + 60
    last = console.real("train", *words, f"train.steps={steps}", "schedule=constant", "run.resume_force=true")
    assert last.code == 0, last.err
    assert "wandb sync" in last.err
    lines = list(read_metrics(run))
    assert sum(isinstance(line, StepLine) for line in lines) == steps
    assert any(isinstance(line, EvaluationLine) for line in lines)

    rows = wandb_rows(run)
    assert [row["_step"] for row in rows] == list(range(len(lines)))
    for row, line in zip(rows, lines, strict=True):
        mine = {key: value for key, value in row.items() if not key.startswith("_")}
        phase = {"phase": line.phase} if isinstance(line, StepLine) else {}
        assert mine == {"step": line.step, "tokens": line.tokens, **phase, **values_of(line)}
    folders = list((run / "mirrors" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert len({folder.name.split("-")[-1] for folder in folders}) == 1, "one id"

    shown = tensorboard_values(run)
    expected = {(tag, line.step): value for line in lines for tag, value in values_of(line).items()}
    assert shown.keys() == expected.keys()
    for place, value in expected.items():
        assert shown[place] == [np.float32(value)], place


def wandb_started(run: Path) -> bool:
    return any((run / "mirrors").glob("wandb/offline-run-*/run-*.wandb"))


def step(number: int, loss: float = 1.0) -> StepLine:
    return StepLine(
        step=number, tokens=number, loss=loss, learning_rate=1.0, gradient_norm=1.0, phase="trunk",
        tokens_per_second=1.0, step_seconds=1.0, memory_bytes=None,
    )  # fmt: skip


def test_a_mirror_gets_a_line_with_the_checkpoint_that_holds_it_and_a_rewound_line_once(tmp_path):
    def write(lines) -> None:
        (tmp_path / "metrics.jsonl").write_text("".join(map(line_text, lines)))

    def checkpoint(number: int) -> None:
        folder = tmp_path / "checkpoints" / f"step_{number:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()

    def given(follower: Follower) -> list[tuple[int, int, float]]:
        return [(number, line.step, getattr(line, "loss", -1.0)) for number, line in follower.new_lines()]

    follower = Follower(tmp_path, sent=0)
    assert given(follower) == []
    write([step(1), step(2), step(3)])
    assert given(follower) == []
    checkpoint(2)
    assert given(follower) == [(0, 1, 1.0), (1, 2, 1.0)]
    evaluation = EvaluationLine(step=2, tokens=2, validation={"validation": 3.0})
    write([step(1), step(2), evaluation])  # rewound: step 3 is undone
    assert given(follower) == [(2, 2, -1.0)]
    write([step(1), step(2), evaluation, step(3, 5.0), step(4, 5.0)])
    checkpoint(4)
    assert given(follower) == [(3, 3, 5.0), (4, 4, 5.0)]
    assert given(Follower(tmp_path, sent=4)) == [(4, 4, 5.0)], "another start goes on where the mirror ended"


def test_the_numbers_of_a_line_that_are_none_are_left_out():
    line = dataclasses.replace(step(1), loss=None)  # NaN in the record
    assert "train/loss" not in values_of(line)
    assert values_of(line)["train/gradient_norm"] == 1.0


@pytest.mark.slow
def test_a_mirror_that_fails_stops_nothing(tmp_path, monkeypatch):
    broken = tmp_path / "broken" / "tensorboard"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('broken on purpose')\n")
    monkeypatch.setenv("PYTHONPATH", f"{broken.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    words = [f"run.dir={tmp_path}/runs", "run.name=b", *corpus_of_letters(tmp_path, 300), *RUN]
    answer = console.real("train", *words, "logger=tensorboard", "train.steps=5", "schedule.warmup_tokens=256")
    assert answer.code == 0, answer.err
    assert "the mirror tensorboard failed, which changed nothing" in answer.err
    assert "broken on purpose" in (tmp_path / "runs" / "b" / "logs" / "mirror_tensorboard.log").read_text()
