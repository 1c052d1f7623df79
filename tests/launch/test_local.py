"""`foretrain launch local`: restarts up to a limit, the tail of the rank that failed first, and how it ended."""

import os
import signal
import time

import pytest

from launch.supervise import PREEMPTED
from scaling.record import StepLine, read_metrics, read_record
from tests.support import console
from tests.support.letters import corpus_of_letters
from tests.support.processes import workers_of

RUN = [
    *("model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "model.ffn_size=32", "model.vocab_size=260"),
    *("train.sequence=32", "train.batch_tokens=256", "train.microbatch=4", "checkpoint.every_tokens=2560", "eval.tokens=512"),
]


def test_a_rank_that_dies_is_named_and_the_run_goes_on_then_a_signal_ends_it_with_75(tmp_path):
    run = tmp_path / "runs" / "a"
    words = [f"run.dir={tmp_path}/runs", "run.name=a", *corpus_of_letters(tmp_path, 300), *RUN, "train.steps=100000"]
    launcher = console.start("launch", "local", "--max-restarts", "1", *words, "parallel.shard=2")

    def wait(condition) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert launcher.poll() is None, launcher.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    try:
        wait(lambda: len(list(run.glob("checkpoints/*/manifest.json"))) > 1)
        first = workers_of(launcher.pid)
        os.kill(first[1], signal.SIGKILL)
        wait(lambda: len(workers := workers_of(launcher.pid)) == 2 and not set(workers) & set(first))
        before = (run / "config.yaml").stat().st_mtime_ns
        wait(lambda: (run / "config.yaml").stat().st_mtime_ns > before)
        began = next(line.step for line in reversed(list(read_metrics(run))))
        wait(lambda: next(line.step for line in reversed(list(read_metrics(run)))) > began + 20)
        launcher.send_signal(signal.SIGUSR1)
        _, err = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert launcher.returncode == PREEMPTED, err
    assert "rank 1 failed first: it was killed by SIGKILL" in err
    assert "restart 1 of 1" in err
    assert "going on from" in err
    steps = [line.step for line in read_metrics(run) if isinstance(line, StepLine)]
    assert steps == list(range(1, len(steps) + 1))
    assert read_record(run).status == "preempted"


@pytest.mark.slow
def test_what_fails_twice_at_one_step_is_not_started_a_third_time(tmp_path):
    words = [f"run.dir={tmp_path}/runs", "run.name=b", *corpus_of_letters(tmp_path, 300), *RUN, "schedule.peak=1e30"]
    answer = console.real("launch", "local", "--max-restarts", "9", *words, "train.steps=50", "schedule.warmup_tokens=0")
    assert answer.code == 1
    assert answer.err.count("diverged") == 2
    assert "failed twice without a step beyond" in answer.err
    assert "restart 2" not in answer.err


@pytest.mark.parametrize("words, said", [
    (["launch", "locl"], "did you mean 'local'"),
    (["launch", "local", "parallel.shrad=2"], "did you mean 'parallel.shard'"),
    (["launch", "local", "--nodes", "2", "parallel.shard=2"], "--rendezvous HOST:PORT"),
    (["launch", "local", "--nodes", "2", "--rendezvous", "a:1", "train.batch_tokens=6144", "parallel.shard=3"], "2 nodes"),
    (["launch", "local", "--run", "/no/file"], "--run /no/file"),
])  # fmt: skip
def test_wrong_requests(words, said, capsys):
    from launch.commands import main

    assert main(words[1:]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) <= 5
