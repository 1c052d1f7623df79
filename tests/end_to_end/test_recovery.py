"""A run that is killed, warned or robbed of a process goes on, and ends as if nothing had happened."""

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling.record import EvaluationLine, StepLine, read_metrics, read_record
from tests.support import commands_on_ranks, console
from tests.support.letters import corpus_of_letters
from tests.support.processes import workers_of
from train.checkpoint.manifest import newest_first
from train.checkpoint.verify import verify_alone
from train.loop.stop import ONE_REQUEST_SECONDS

RUN = [
    *("model.num_layers=2", "model.hidden_size=32", "model.num_heads=2", "model.ffn_size=48", "model.vocab_size=260"),
    *("train.sequence=32", "train.batch_tokens=256", "train.microbatch=2", "eval.tokens=512", "schedule.warmup_tokens=512"),
    *("train.precision=fp64", "schedule.peak=5e-3"),
]
TWO = ["parallel.shard=2", "parallel.replicate=2", "parallel.tensor=2", "parallel.pipeline=2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("recovery")


def words(place: Path, name: str, *more: str) -> list[str]:
    corpus = corpus_of_letters(place, 2000)
    return [f"run.dir={place}/runs", f"run.name={name}", *corpus, *RUN, *more]


def measured(run: Path) -> list[tuple[float, float, float]]:
    """Of every step, which must be there once."""
    lines = [line for line in read_metrics(run) if isinstance(line, StepLine)]
    assert [line.step for line in lines] == list(range(1, len(lines) + 1))
    return [(line.loss, line.gradient_norm, line.learning_rate) for line in lines]


def evaluated(run: Path) -> list[int]:
    return [line.step for line in read_metrics(run) if isinstance(line, EvaluationLine)]


def _wait_for(launcher: "subprocess.Popen[str]", condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.003)


def steps_done(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"learning_rate")
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("kills, steps", [(2, 160), pytest.param(10, 400, marks=pytest.mark.slow)])
def test_killed_many_times_it_ends_as_the_uninterrupted_run(place, kills, steps):
    """SIGKILL to the launcher and both workers at random moments, every second time in the middle of a save; each start has
    another layout of two processes. Float64: what is left is the order of sums, far below a lost sample."""
    length = [f"train.steps={steps}", "checkpoint.every_tokens=1024", "eval.every_tokens=25600"]
    assert console.warm("train", *words(place, f"whole_{kills}", *length)).code == 0
    whole, run = place / "runs" / f"whole_{kills}", place / "runs" / f"killed_{kills}"
    draw = random.Random(11)
    in_saving = 0
    for kill in range(kills):
        reached = steps_done(run)
        goal = min(reached + 4 + draw.randrange(steps // (kills + 1)), steps - 40)
        launcher = console.start("train", *words(place, run.name, *length, draw.choice(TWO)))
        try:
            _wait_for_steps(launcher, run, goal)
            if kill % 2:
                _wait_for(launcher, lambda: bool(_unfinished(run)))
        finally:
            for pid in (launcher.pid, *workers_of(launcher.pid)):
                os.kill(pid, signal.SIGKILL)
            launcher.communicate(timeout=60)
        in_saving += bool(_unfinished(run))
    assert in_saving >= 1
    assert read_record(run).status == "running"
    assert 0 < steps_done(run) < steps, "killed too late to prove anything"
    last = console.warm("train", *words(place, run.name, *length))
    assert last.code == 0, last.err
    assert "going on from" in last.err
    found, expected = measured(run), measured(whole)
    assert len(found) == steps
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-7)
    assert evaluated(run) == evaluated(whole)
    assert read_record(run).loss == pytest.approx(read_record(whole).loss, rel=1e-7)


def _folders(run: Path) -> list[Path]:
    return newest_first(run / "checkpoints")


def _unfinished(run: Path) -> list[Path]:
    """Checkpoints that are being written."""
    return [folder for folder in _folders(run) if not (folder / "manifest.json").exists()]


def _wait_for_steps(launcher: "subprocess.Popen[str]", run: Path, goal: int) -> None:
    """Wait until this start has begun (which cuts the metrics back to its checkpoint) and the run has come to step `goal`."""
    before = _written(run)
    _wait_for(launcher, lambda: _written(run) != before)
    _wait_for(launcher, lambda: steps_done(run) >= goal)


def _written(run: Path) -> int:
    path = run / "config.yaml"  # the last file that a start writes before its first step
    return path.stat().st_mtime_ns if path.exists() else 0


# SIGTERM comes in the middle of every phase below.
@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGUSR1])
def test_a_warned_run_saves_ends_with_0_and_goes_on(place, number):
    name = f"warned{number}"
    run = place / "runs" / name
    length = ["train.steps=5000", "parallel.shard=2"]
    launcher = console.start("train", *words(place, name, *length))
    try:
        _wait_for(launcher, lambda: steps_done(run) > 5)
        launcher.send_signal(number)
        _, err = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert launcher.returncode == 0, err
    assert "Traceback" not in err
    done = steps_done(run)
    assert f"stopped by {signal.Signals(number).name} at step {done} " in err
    assert read_record(run).status == "preempted"
    assert _folders(run)[0].name == f"step_{done:08d}"


def test_a_second_signal_stops_at_once_and_damages_nothing(place):
    run = place / "runs" / "twice"
    length = ["train.steps=5000", "checkpoint.every_tokens=2560", "parallel.shard=2"]
    launcher = console.start("train", *words(place, "twice", *length))
    try:
        _wait_for(launcher, lambda: len(_folders(run)) > 1)
        first, second = workers_of(launcher.pid)
        os.kill(second, signal.SIGSTOP)  # so that no step ends, and the first signal cannot be acted upon
        launcher.send_signal(signal.SIGTERM)
        time.sleep(ONE_REQUEST_SECONDS + 0.5)
        assert launcher.poll() is None
        launcher.send_signal(signal.SIGTERM)
        _wait_for(launcher, lambda: first not in workers_of(launcher.pid))
        os.kill(second, signal.SIGKILL)
        launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert launcher.returncode == 128 + signal.SIGTERM
    complete = [folder for folder in _folders(run) if folder not in _unfinished(run)]
    assert complete
    for folder in complete:
        verify_alone(folder)


@pytest.mark.slow
def test_torchrun_restarts_after_the_death_of_a_rank_and_the_run_goes_on(place):
    run = place / "runs" / "dead"
    length = ["train.steps=120", "checkpoint.every_tokens=2560"]
    torchrun = (str(console.COMMAND.with_name("torchrun")), "--nproc-per-node", "2", "--max-restarts", "2", "-m", "train")
    launcher = console.start(*words(place, "dead", *length, "parallel.shard=2"), command=torchrun)
    try:
        _wait_for(launcher, lambda: len(_folders(run)) > 1 and steps_done(run) > 15)
        os.kill(workers_of(launcher.pid)[1], signal.SIGKILL)
        _, err = launcher.communicate(timeout=120)
    finally:
        launcher.kill()
    assert launcher.returncode == 0, err
    assert "going on from" in err
    assert len(measured(run)) == 120
    assert read_record(run).status == "finished"


@pytest.mark.parametrize("phase", ["tokenising", "compile", "step", "evaluation", "saving"])
def test_a_signal_is_noticed_in_every_phase(group, place, phase):
    """To one rank of two (while tokenising, to the one that does), in the middle of the phase."""
    name = f"in_{phase}"
    more = ["train.steps=12", "eval.every_tokens=1024", "checkpoint.every_tokens=1024", "parallel.shard=2"]
    if phase == "tokenising":
        more.append(f"data.cache_dir={place}/another_cache")
    if phase == "compile":
        more.append("train.compile=true")
    overrides = words(place, name, *more)
    answers = group(2).run(commands_on_ranks.signalled_in, overrides, phase, timeout=240.0)
    run = place / "runs" / name
    if phase == "tokenising":  # there is nothing to save
        assert [code for code, _, _ in answers] == [143, 143]
        assert "stopped by SIGTERM before the first step" in answers[0][2]
        assert not run.exists()
        return
    assert [code for code, _, _ in answers] == [0, 0], answers
    assert read_record(run).status == "preempted"
    assert 0 < steps_done(run) < 12
    assert _folders(run)[0].name == f"step_{steps_done(run):08d}"
    assert re.search(r"stopped by SIGTERM at step \d+ .* saved", answers[0][2])
    assert console.warm("train", *overrides, "parallel.shard=1", "train.compile=false").code == 0
    assert len(measured(run)) == 12
    assert evaluated(run) == [4, 8, 12]
