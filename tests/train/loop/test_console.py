"""What a run says while it goes on, and its loss curve."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from scaling.record import EvaluationLine, line_text, write_record
from tests.support.records import RECORD, STEP
from train.checkpoint.manifest import Progress
from train.config import load_config
from train.loop import console
from train.loop.course import Course
from train.loop.loss_curve import draw_loss, trunk_lines


def test_without_a_terminal_a_line_comes_every_so_often(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console.log, "propagate", True)
    monkeypatch.setattr(console.log, "disabled", False)  # a library that sets up logging disables what there is
    with caplog.at_level(logging.INFO, logger="foretrain"), console.progress(1000, 100, shown=True) as advance:
        for step in range(101, 161):  # two steps a second
            now[0] += 0.5
            advance(replace(STEP, step=step, loss=3.25, learning_rate=0.002, memory_bytes=2**30))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "step 160 of 1,000: loss 3.2500, learning rate 0.002, 10 tokens/s, 0:07:00 left, 1,024 MiB"


def test_other_ranks_are_silent(monkeypatch, caplog):
    monkeypatch.setattr(console, "LINE_SECONDS", -1.0)
    with console.progress(10, 0, shown=False) as advance:
        advance(STEP)
    assert not caplog.records


@pytest.mark.parametrize("words, evaluations", [
    (["train.steps=300"], 10),
    (["train.steps=100"], 5),  # every twenty steps
    (["train.steps=7"], 1),  # at the end
    (["train.steps=100", "eval.every_tokens=409600"], 1),
])  # fmt: skip
def test_the_validation_loss_is_a_curve_by_default(words, evaluations):
    course = Course(load_config([*words, "train.batch_tokens=4096", "schedule.warmup_tokens=0"]))
    progress, found = Progress(), 0
    while not course.at_end(progress):
        progress = course.step_after(progress).after
        found += course.evaluates(progress)
    assert found == evaluations


def written(run: Path, first: int, last: int, trunk: str | None) -> Path:
    run.mkdir(parents=True)
    lines = [replace(STEP, step=step, tokens=step * 4096, loss=9.0 / step) for step in range(first, last + 1)]
    evaluation = EvaluationLine(step=last, tokens=last * 4096, validation={"validation": 3.0})
    (run / "metrics.jsonl").write_text("".join(map(line_text, [*lines, evaluation])))
    write_record(run, replace(RECORD, trunk=trunk))
    return run


def test_a_branch_is_drawn_after_its_trunk_and_that_ones_trunk(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    first = written(tmp_path / "first", 1, 30, None)
    second = written(tmp_path / "second", 21, 60, str(first / "checkpoints" / "step_00000020"))
    branch = written(tmp_path / "branch", 41, 100, None)
    trunk = str(second / "checkpoints" / "step_00000040")
    assert [line.step for line in trunk_lines(trunk, before=41 * 4096)] == list(range(1, 41))
    curves, marks = {}, {}
    plot, mark = Axes.plot, Axes.axvline
    monkeypatch.setattr(
        Axes, "plot", lambda self, x, y, *a, **k: (curves.update({k["label"]: x}), plot(self, x, y, *a, **k))[1]
    )
    monkeypatch.setattr(Axes, "axvline", lambda self, x, **k: (marks.update({k["label"]: x}), mark(self, x, **k))[1])
    words = ["train.steps=100", "train.batch_tokens=4096", "quant=qat", "quant.start=0.6", "schedule.warmup_tokens=0"]
    draw_loss(branch, load_config([*words, f"run.trunk={trunk}"]))
    assert (branch / "loss.png").stat().st_size > 10_000
    assert curves["trunk, training"] == [step * 4096 for step in range(1, 41)]
    assert curves["training"] == [step * 4096 for step in range(41, 101)]
    assert marks == {"quantized from here on": 60 * 4096}
    assert not trunk_lines(f"{tmp_path}/gone/checkpoints/step_00000040", before=10**9)
    draw_loss(branch, load_config([*words, f"run.trunk={tmp_path}/gone/checkpoints/step_00000040"]))
