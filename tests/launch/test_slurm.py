"""Against a real scheduler: a warning, a checkpoint, a requeue, continuation; an array; a run cancelled by hand."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from launch.commands import main
from scaling.record import StepLine, read_metrics, read_record
from tests.support import console, slurm
from tests.support.letters import corpus_of_letters

RUN = [
    *("model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "model.ffn_size=32", "model.vocab_size=260"),
    *("train.sequence=32", "train.batch_tokens=256", "train.microbatch=2", "eval.tokens=512", "schedule.warmup_tokens=512"),
    *("schedule=constant", "parallel.oversubscribe=true"),
]
SITE = """\
partition: main
nodes: 2
processes_per_node: 2
cpus_per_node: 2
time: "00:30:00"
warning_seconds: 60
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if (why := slurm.missing()) is not None:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("slurm")
    site = folder / "site.yaml"
    site.write_text(SITE)
    with slurm.running(folder / "daemons"):
        yield site


def words(place: Path, name: str, *more: str) -> list[str]:
    return [f"run.dir={place}/runs", f"run.name={name}", *corpus_of_letters(place, 2000), *RUN, *more]


def submitted(answer: console.Answer) -> list[str]:
    assert answer.code == 0, answer.err
    return re.findall(r"^job (\d+):", answer.out, re.MULTILINE)


def wait(condition, logs: Path, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "\n".join(path.read_text() for path in logs.rglob("*.log"))
        time.sleep(0.2)


def steps(run: Path) -> list[int]:
    try:
        return [line.step for line in read_metrics(run) if isinstance(line, StepLine)]
    except FileNotFoundError:
        return []


@pytest.mark.slow
def test_two_nodes_of_two_are_warned_save_requeue_and_go_on_until_one_is_cancelled(cluster, tmp_path):
    layout = ["parallel.shard=2", "parallel.replicate=2"]
    answer = console.real("launch", "slurm", "--cluster", str(cluster), *words(tmp_path, "two", "train.steps=100000", *layout))
    (job,) = submitted(answer)
    run, logs = tmp_path / "runs" / "two", tmp_path / "runs" / ".launch"
    wait(lambda: len(steps(run)) > 10, logs)
    subprocess.run(["scancel", "--signal=USR1", "--batch", job], check=True)  # what the scheduler sends before the limit
    wait(lambda: read_record(run).status == "preempted", logs)
    before = len(steps(run))
    wait(lambda: slurm.state_of(job) == "PENDING", logs)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False)
    wait(lambda: read_record(run).status == "running" and len(steps(run)) > before + 5, logs)
    assert read_record(run).resumed_from == str(run / "checkpoints" / f"step_{before:08d}")
    subprocess.run(["scancel", job], check=True)
    wait(lambda: slurm.state_of(job) in ("CANCELLED", "gone") and read_record(run).status != "running", logs)
    assert read_record(run).status == "preempted", "and not failed"
    assert steps(run) == list(range(1, len(steps(run)) + 1))
    assert read_record(run).world_size == 4
    log = "\n".join(path.read_text() for path in logs.rglob("*.log"))
    assert log.count("back into the queue") == 1
    # The queued job runs the code as it was: nothing of ours is imported from elsewhere.
    assert next(logs.glob("two-*/code/launch/worker.py"))


@pytest.mark.slow
def test_a_ladder_is_an_array(cluster, tmp_path):
    file = tmp_path / "four.yaml"
    file.write_text(json.dumps({
        "overrides": [word for word in words(tmp_path, "x", "parallel.shard=1") if not word.startswith("run.name")],
        "sizes": [{"num_layers": 1, "hidden_size": 16, "num_heads": 2, "ffn_size": 32}],
        "tokens_per_parameter": [0.5], "seeds": [0, 1, 2, 3],
    }))  # fmt: skip
    answer = console.real("launch", "ladder", str(file), "--cluster", str(cluster), "--no-trunks")
    assert len(submitted(answer)) == 1
    runs = tmp_path / "runs"
    names = [f"four-1x16-0.5x-s{seed}" for seed in range(4)]
    wait(lambda: all((runs / name / "run.json").exists() and read_record(runs / name).status == "finished" for name in names),
         runs / ".launch")  # fmt: skip
    for name in names:
        assert steps(runs / name) == list(range(1, len(steps(runs / name)) + 1))
    assert console.real("launch", "ladder", str(file), "--cluster", str(cluster), "--no-trunks").out.endswith(
        "every run is finished\n"
    )


def test_the_scheduler_knows_neither_such_a_partition_nor_such_nodes(cluster, tmp_path, capsys):
    """One set-up of the real scheduler, nothing queued."""
    layout = words(tmp_path, "no", "parallel.shard=4", "train.steps=100")
    for options, said in (
        (["--partition", "gpu"], "partition 'gpu' does not exist here (there is main)"),
        (["--gpus-per-node", "2"], "partition main has 0 GPUs a node, 2 are asked for"),
        (["--cpus-per-node", "64"], "partition main has 2 CPUs a node"),
        (["--nodes", "9", "--processes-per-node", "1"], "partition main has 2 nodes, the layout needs 4"),
    ):
        assert main(["slurm", "--cluster", str(cluster), *options, *layout]) == 2
        err = capsys.readouterr().err
        assert said in err
    assert slurm.said("squeue", "--noheader") == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("options, overrides, said", [
    (["--cluster", "gpuu"], [], "did you mean 'gpu'"),
    (["--cluster", "frontier"], [], "account must be given: --account NAME"),
    (["--processes-per-node", "9"], [], "processes_per_node=9 on gpus_per_node=8: a process needs a GPU of its own"),
    (["--cpus-per-node", "4"], [], "cpus_per_node=4 for 8 processes"),
    (["--time", "1 hour"], [], "time='1 hour' is not"),
    (["--time", "00:05"], [], "leaves nothing after warning_seconds=300"),
    (["--time", "00:06:30"], ["model=8b", "checkpoint.every_tokens=100000000", "parallel.shard=8", "train.microbatch=1",
                              "train.tokens=1000000000", "train.precision=bf16", "train.batch_tokens=131072",
                              "train.sequence=4096"], "too short for one checkpoint interval"),
    ([], ["parallel.shard=12", "train.batch_tokens=24576"], None),
    ([], ["parallel.shard=9", "train.batch_tokens=18432"], "9 processes, which do not divide over 2 nodes of 8"),
    (["--nodes", "1"], ["parallel.shard=16", "train.batch_tokens=32768"], "needs 2 nodes of 8 processes"),
    ([], ["model=8b", "train.precision=bf16"], "it will not fit"),
])  # fmt: skip
def test_what_is_inconsistent_is_refused_before_anything_is_queued(options, overrides, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = main(["slurm", "--dry-run", *options, *overrides])
    out, err = capsys.readouterr()
    assert code == (2 if said else 0), err
    assert list(tmp_path.iterdir()) == []
    if said:
        assert out == ""
        assert said in err
        assert len(err[err.index("error: ") :].splitlines()) <= 5


def test_without_sbatch_it_says_where_to_type_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["slurm", "parallel.shard=1"]) == 2
    assert "there is no sbatch here" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--cluster", "frontier", "--account", "abc123", "--preflight"]])
def test_the_script_is_clean_and_holds_no_path_of_this_machine(options, capsys, tmp_path):
    awkward = "data.files=['/data/a b/*.txt']"
    assert main(["slurm", "--dry-run", *options, "parallel.shard=16", "train.batch_tokens=32768", "data=files", awkward]) == 0
    text = capsys.readouterr().out
    (tmp_path / "job.sh").write_text(text)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", str(tmp_path / "job.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    paths = set(re.findall(r"(?<![\w$}\"'./])/[a-z]+[\w/.]*", text)) - {"/bin/bash", "/dev/null"}
    assert paths <= {"/data/a"}, paths


def test_a_users_own_file_is_checked(tmp_path, capsys):
    site = tmp_path / "mine.yaml"
    site.write_text(SITE + "partion: x\n")
    assert main(["slurm", "--dry-run", "--cluster", str(site)]) == 2
    assert "unknown key 'partion'; did you mean 'partition'?" in capsys.readouterr().err
