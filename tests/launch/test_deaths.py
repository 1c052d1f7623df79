"""The rank that failed first is named, with its last lines."""

import os
import signal
import time
from pathlib import Path

import pytest

from launch.deaths import report
from parallel.environment import LOST
from tests.support import console
from tests.support.letters import corpus_of_letters
from tests.support.processes import is_alive, workers_of


@pytest.fixture
def logs(tmp_path):
    def make(**lines: str) -> Path:
        for rank, text in lines.items():
            folder = tmp_path / "run" / "attempt_0" / rank.removeprefix("rank")
            folder.mkdir(parents=True)
            (folder / "stderr.log").write_text(text)
        return tmp_path

    return make


@pytest.mark.parametrize("codes, lines, code, said", [
    ({0: LOST, 2: -9}, {"rank1": "", "rank2": ""}, 1, ["rank 2 failed first: it was killed by SIGKILL", "memory"]),
    ({0: LOST, 1: -11}, {"rank1": "a\nb\nc\n"}, 1, ["rank 1 failed first: it was killed by SIGSEGV", "last: b", "last: c"]),
    ({0: LOST, 1: 1}, {"rank1": "Traceback\nValueError: odd\n"}, 1, ["rank 1 failed first: it ended with exit code 1", "odd"]),
    ({0: LOST}, {"rank1": "", "rank2": "RuntimeError: odd\n"}, 1, ["rank 2 failed first", "last: RuntimeError: odd"]),
    ({0: LOST, 1: LOST}, {"rank1": ""}, 1, ["lost each other"]),
    ({0: 1, 1: 1}, {"rank1": ""}, 1, []),
    ({0: 2}, {}, 2, []),
    ({1: 143}, {"rank1": ""}, 143, []),
    ({0: 143, 1: -9}, {"rank1": ""}, 143, []),
])  # fmt: skip
def test_the_first_is_told_from_its_victims(logs, capsys, codes, lines, code, said):
    assert report(codes, logs(**lines), asked_to_stop=code == 143) == code
    err = capsys.readouterr().err
    assert bool(err) == bool(said)
    for words in said:
        assert words in err
    assert len(err.splitlines()) <= 5


RUN = [
    *("model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "model.ffn_size=32", "model.vocab_size=260"),
    *("train.steps=100000", "train.sequence=32", "train.batch_tokens=256", "train.microbatch=4", "parallel.shard=2"),
]


@pytest.mark.parametrize("moment", ["start", "loop"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_ends_the_run_soon_and_is_named(tmp_path, moment, rank):
    words = [f"run.dir={tmp_path}/runs", "run.name=a", *corpus_of_letters(tmp_path, 300), *RUN]
    launcher = console.start("train", *words)
    try:
        deadline = time.monotonic() + 120
        metrics = tmp_path / "runs" / "a" / "metrics.jsonl"
        while len(workers_of(launcher.pid)) < 2 or (moment == "loop" and not (metrics.exists() and metrics.stat().st_size)):
            assert time.monotonic() < deadline
            assert launcher.poll() is None, launcher.communicate()
            time.sleep(0.01)
        if moment == "start":
            time.sleep(1.0)
        workers = workers_of(launcher.pid)
        killed = time.monotonic()
        os.kill(sorted(workers)[rank], signal.SIGKILL)
        _, err = launcher.communicate(timeout=60)
        waited = time.monotonic() - killed
    finally:
        launcher.kill()
    assert launcher.returncode == 1, err
    assert err.count("error: ") == 1, err
    assert f"error: rank {rank} failed first: it was killed by SIGKILL" in err
    assert "gloo" not in err
    assert "SIGTERM" not in err
    assert "Traceback" not in err
    assert not any(map(is_alive, workers))
    assert waited < 25, "the limit of torch's agent, which kills what has not ended"
