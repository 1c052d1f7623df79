"""Steps that go wrong: noticed, skipped, undone with their data left out, or the end of the run."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch

from scaling.record import StepLine, read_metrics, read_record
from tests.support import broken_steps, console
from tests.support.letters import corpus_of_letters
from train.config import load_config
from train.loop.health import Health

RUN = [
    *("model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "model.ffn_size=32", "model.vocab_size=260"),
    *("train.steps=24", "train.sequence=32", "train.batch_tokens=256", "train.microbatch=4", "eval.tokens=512"),
    *("schedule.warmup_tokens=0", "checkpoint.every_tokens=1024", "train.precision=fp64"),
]


def health(*overrides: str) -> Health:
    return Health(load_config(["health.spike_window=10", *overrides]).health)


def test_a_spike_is_what_stands_out_of_the_losses_before():
    judge = health("health.on_spike=warn", "health.spike_threshold=5")
    draw = random.Random(1)
    for _ in range(9):
        assert judge.judge(draw.gauss(3.0, 0.1), 1.0).verdict == "healthy"
    assert judge.judge(30.0, 1.0).verdict == "healthy"  # the window is not full yet
    for _ in range(20):
        assert judge.judge(draw.gauss(3.0, 0.1), 1.0).verdict == "healthy"
    assert judge.judge(5.0, 1.0).verdict == "warn"
    assert "the loss jumped to 5.0000, above 3." in judge.judge(5.0, 1.0).why
    assert judge.judge(2.0, 1.0).verdict == "healthy"  # falling is no spike
    assert health("health.on_spike=rewind").config.on_spike == "rewind"


def test_a_spike_moves_no_line_and_may_be_ignored():
    judge = health("health.on_spike=rewind")
    judge.restart([1.0 + 0.01 * (step % 3) for step in range(10)])
    for _ in range(50):
        assert judge.judge(9.0, 1.0).verdict == "rewind"
    judge = health("health.on_spike=ignore")
    judge.restart([1.0] * 10)
    assert judge.judge(9.0, 1.0).verdict == "healthy"


@pytest.mark.parametrize("loss, norm", [(float("nan"), 1.0), (1.0, float("inf")), (float("-inf"), float("nan"))])
def test_what_is_not_finite_is_judged_as_configured(loss, norm):
    assert health().judge(loss, norm).verdict == "stop"
    assert health("health.on_nonfinite=rewind").judge(loss, norm).verdict == "rewind"
    skipping = health("health.on_nonfinite=skip", "health.patience=2")
    assert [skipping.judge(loss, norm).verdict for _ in range(3)] == ["skipped", "skipped", "stop"]
    assert skipping.judge(1.0, 1.0).verdict == "healthy"
    assert skipping.judge(loss, norm).verdict == "skipped"


@pytest.fixture
def words(tmp_path) -> list[str]:
    corpus = corpus_of_letters(tmp_path, 600)
    return [f"run.dir={tmp_path}/runs", "run.name=a", *corpus, *RUN]


def lines_of(run: Path) -> list[StepLine]:
    lines = [line for line in read_metrics(run) if isinstance(line, StepLine)]
    assert [line.step for line in lines] == list(range(1, len(lines) + 1))
    return lines


@pytest.mark.parametrize("layout", ["shard=2", "tensor=2", "pipeline=2"])
def test_a_skipped_step_changes_nothing(group, layout):
    """Weights and moments are to the bit what they were, on a layout of each kind."""
    more = ["model.num_layers=2", "train.microbatch=2", f"parallel.{layout}"]
    assert all(group(2).run(broken_steps.step_with_a_broken_gradient, [*RUN, *more]))


@pytest.mark.parametrize("asynchronous", [False, True], ids=["of CPUs", "of GPUs"])
def test_a_run_that_skips_goes_on_without_the_step(group, words, tmp_path, asynchronous):
    """Sample 80 (step 11) breaks the gradient, wherever it is met."""
    overrides = [*words, "health.on_nonfinite=skip", "parallel.shard=2"]
    answers = group(2).run(broken_steps.run_with_bad_samples, overrides, [80], asynchronous)
    assert [code for code, _, _ in answers] == [0, 0], answers
    assert "step 11: loss" in answers[0][2]
    assert "the step was skipped" in answers[0][2]
    lines = lines_of(tmp_path / "runs" / "a")
    assert len(lines) == 24
    assert [line.step for line in lines if line.loss is None or line.gradient_norm is None] == [11]
    assert read_record(tmp_path / "runs" / "a").skipped_steps == 1


@pytest.mark.parametrize("asynchronous", [False, True], ids=["of CPUs", "of GPUs"])
def test_a_run_that_rewinds_leaves_the_data_out_and_says_so_in_the_record(group, words, tmp_path, asynchronous):
    overrides = [*words, "health.on_nonfinite=rewind", "parallel.shard=2"]
    answers = group(2).run(broken_steps.run_with_bad_samples, overrides, [80], asynchronous)
    assert [code for code, _, _ in answers] == [0, 0], answers
    assert "step 11: loss" in answers[0][2]
    assert "Back to step 8; samples 64 to 87 are left out" in answers[0][2]
    run = tmp_path / "runs" / "a"
    lines = lines_of(run)
    assert len(lines) == 24
    assert all(line.loss is not None for line in lines)
    assert read_record(run).skipped_samples == [[64, 88]]
    manifest = json.loads(next((run / "checkpoints").glob("step_00000024/manifest.json")).read_text())
    assert manifest["progress"]["samples"] == 24 * 8 + 24
    # The same run on the text without those samples' steps is the same from there on.
    clean = [word.replace("run.name=a", "run.name=b") for word in overrides]
    answers = group(2).run(broken_steps.run_without_samples, clean, 64, 24)
    assert [code for code, _, _ in answers] == [0, 0], answers
    expected = lines_of(tmp_path / "runs" / "b")
    assert [dataclasses.astuple(line)[:5] for line in lines] == [
        pytest.approx(dataclasses.astuple(line)[:5], rel=1e-10) for line in expected
    ]


def test_a_run_that_stays_broken_stops_in_the_end(group, words, tmp_path):
    overrides = [*words, "health.on_nonfinite=rewind", "health.patience=2", "parallel.shard=2"]
    first, second = group(2).run(broken_steps.run_with_bad_samples, overrides, list(range(80, 500)))
    console.Answer(*first).assert_refused("went wrong again", "after 2 rewinds", code=1)
    assert second == (1, "", "")
    assert "samples 64 to 87 are left out" in first[2]
    assert "samples 88 to 95 are left out" in first[2]
    assert read_record(tmp_path / "runs" / "a").status == "failed"


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(words):
    answer = console.warm("train", *words, "health.on_nonfinite=rewind", "schedule.peak=1e30", "model.init_std=10")
    answer.assert_refused("has no checkpoint to go back to", code=1)


def test_the_fused_optimizer_still_skips_where_it_is_told_to():
    """What the engine relies on, in torch itself."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.full((3,), float("nan"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert torch.equal(weight, torch.ones(3))
