"""A ladder: the table, trunks that are trained once, a queue that is killed and goes on."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from launch.commands import main
from launch.ladder.file import read_ladder
from launch.ladder.trunks import FOLDER, jobs_of, split
from scaling.record import StepLine, read_metrics, read_record
from scaling.runs.read import read_runs
from tests.support import console
from tests.support.letters import corpus_of_letters
from train.config import load_config, schedule_of

SIZE = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "ffn_size": 32}
RUN = [
    *("model.vocab_size=260", "train.sequence=32", "train.batch_tokens=256", "train.microbatch=4", "eval.tokens=512"),
    *("schedule.warmup_tokens=512", "checkpoint.every_tokens=2560"),
]


def written(place: Path, **keys) -> Path:
    file = place / "tiny.yaml"
    base = [*corpus_of_letters(place, 2000), *RUN, f"run.dir={place}/runs"]
    file.write_text(yaml.safe_dump({"overrides": base, "sizes": [SIZE], "tokens_per_parameter": [2, 4], **keys}))
    return file


def test_every_combination_is_a_run_and_full_precision_stands_once(tmp_path):
    keys = {"bits": [None, 4], "qat_fractions": [0.2, 0.4], "schedules": ["wsd", "cosine"], "seeds": [0, 1]}
    runs = read_ladder(written(tmp_path, **keys))
    assert len(runs) == len({run.name for run in runs}) == 2 * (1 + 2) * 2 * 2
    run = next(run for run in runs if run.name == "tiny-1x16-4x-4bit-qat0.4-cosine-s1")
    config = load_config(run.words)
    parameters = config.model.shape.parameters
    assert 4 * parameters <= config.total_tokens < 4 * parameters + 256
    assert (config.run.seed, config.schedule.name, config.quant.bits, config.quant.start) == (1, "cosine", 4, 0.6)


def test_a_run_and_the_trunks_before_it_compute_what_the_run_alone_would(tmp_path):
    """Every token is trained with the learning rate of the run by itself; no trunk has more than two runs need."""
    jobs = jobs_of(read_ladder(written(tmp_path, bits=[None, 4], qat_fractions=[0.2, 0.4])))
    trunks = {job.folder: job for job in jobs if job.is_trunk}
    runs = [job for job in jobs if not job.is_trunk]
    assert len(runs) == 6
    assert len(trunks) == 4
    for job in runs:
        alone = load_config([word for word in job.words if not word.startswith("run.trunk=")])
        schedule, before = schedule_of(alone), trunks[job.needs]
        assert job.trunk_tokens == before.config.total_tokens == split(alone)
        for tokens in range(256, job.trunk_tokens + 1, 256):
            assert schedule_of(before.config).learning_rate(tokens) == schedule.learning_rate(tokens)
        step = job.trunk_tokens // 256
        assert job.config.run.trunk == str((before.folder / "checkpoints" / f"step_{step:08d}").resolve())
    trained = sum(job.config.total_tokens - job.trunk_tokens for job in jobs)
    assert trained < 0.5 * sum(job.config.total_tokens for job in runs)
    assert all(trunk.folder.parent.name == FOLDER for trunk in trunks.values())
    assert not [
        job for job in jobs_of(read_ladder(written(tmp_path, bits=[None, 4], qat_fractions=[0.2])), share=False) if job.is_trunk
    ]


def test_cosine_has_no_trunk_and_one_run_alone_has_none(tmp_path):
    assert not [job for job in jobs_of(read_ladder(written(tmp_path, schedules=["cosine"]))) if job.is_trunk]
    assert len(jobs_of(read_ladder(written(tmp_path, tokens_per_parameter=[4])))) == 1


def test_the_table_comes_first_and_a_dry_run_starts_nothing(tmp_path, capsys):
    file = written(tmp_path, bits=[None, 4], qat_fractions=[0.2])
    assert main(["ladder", str(file), "--dry-run", "--json", "--hardware", "h100", "--price", "2"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["runs"]) == 4
    assert said["flops"] < said["flops_without_trunks"]
    for row in (*said["runs"], *said["trunks"]):
        assert row["fits"]
        assert row["flops"] == 6 * row["parameters"] * (row["tokens"] - row["trunk_tokens"])
        assert row["dollars"] == pytest.approx(2 * row["seconds"] / 3600)
    assert said["dollars"] == pytest.approx(sum(row["dollars"] for row in (*said["runs"], *said["trunks"])))
    assert main(["ladder", str(file), "--dry-run"]) == 0
    assert "4 runs on" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("keys, said", [
    ({"sizs": [1e6]}, "unknown key 'sizs'; did you mean 'sizes'?"),
    ({"sizes": ["8bb"]}, "did you mean '8b'?"),
    ({"sizes": []}, "sizes must be a list"),
    ({"bits": 4}, "bits must be a list, such as bits: [4]"),
    ({"bits": [5]}, "quant.bits"),
    ({"tokens_per_parameter": ["many"]}, "tokens_per_parameter: many is not a number above 0"),
    ({"seeds": [-1]}, "seeds must be whole numbers"),
    ({"schedules": ["wsdd"]}, "schedules: wsdd"),
    ({"overrides": ["train.batch_tokns=3"]}, "did you mean 'train.batch_tokens'?"),
    ({"tokens_per_parameter": [2, 2]}, "two runs would have the name"),
    ({"optimum": {}}, "'ladder' is not one of `scaling plan --json`"),
    ({"optimum": {}, "ladder": {"runs": [], "none": "no need"}}, "proposes no runs (no need)"),
])  # fmt: skip
def test_a_wrong_file_starts_nothing(tmp_path, keys, said, capsys):
    assert main(["ladder", str(written(tmp_path, **keys))]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) <= 5
    assert not (tmp_path / "runs").exists()


def test_the_ladder_of_a_plan_goes_straight_in(tmp_path, capsys):
    """`scaling plan --json` of a fit to a real law's runs."""
    place = tmp_path / "study.csv"
    assert console.warm("scaling", "simulate", "chinchilla", "--noise", "0.02", "--out", str(place)).code == 0
    fitted = console.warm("scaling", "fit", "chinchilla", str(place), "--bootstrap", "50", "--json")
    (tmp_path / "fit.json").write_text(fitted.out)
    planned = console.warm("scaling", "plan", str(tmp_path / "fit.json"), "--flops", "1e22", "--ladder-share", "0.3", "--json")
    (tmp_path / "plan.json").write_text(planned.out)
    proposed = json.loads(planned.out)["ladder"]["runs"]
    assert proposed, planned.out[-500:]
    more = ["train.batch_tokens=65536", "train.microbatch=1", f"run.dir={tmp_path}/runs"]
    assert main(["ladder", str(tmp_path / "plan.json"), *more, "--dry-run", "--json", "--hardware", "h100"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["name"] for run in runs] == [f"ladder-{number}" for number in range(1, len(proposed) + 1)]
    for run, wanted in zip(runs, proposed, strict=True):
        assert run["parameters"] == pytest.approx(wanted["parameters"], rel=0.1)
        assert run["tokens"] == pytest.approx(wanted["tokens"], rel=0.1)


@pytest.mark.slow
def test_twelve_runs_killed_twice_end_as_twelve_with_trunks_trained_once(tmp_path):
    file = written(tmp_path, sizes=[SIZE, SIZE | {"num_layers": 2}], bits=[None, 4], qat_fractions=[0.2, 0.4])
    runs = tmp_path / "runs"
    finished: dict[str, float] = {}
    for kill in (2, 8):
        ladder = console.start("launch", "ladder", str(file), "--processes", "2")
        deadline = time.monotonic() + 400
        while len(_finished(runs)) < kill or not _running(runs):
            assert ladder.poll() is None, ladder.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(ladder.pid, signal.SIGKILL)
        ladder.communicate()
        finished |= {path: (runs / path / "run.json").stat().st_mtime_ns for path in _finished(runs)}
    last = console.start("launch", "ladder", str(file), "--processes", "2")
    _, err = last.communicate(timeout=600)
    assert last.returncode == 0, err
    assert err.count("finished before") >= 8
    for path, time_ns in finished.items():
        assert (runs / path / "run.json").stat().st_mtime_ns == time_ns, "a finished run was touched again"
    frame = read_runs([runs])
    assert len(frame) == 12, "trunks are no runs of the study"
    assert set(frame["status"]) == {"finished"}
    assert frame["loss"].notna().all()
    assert len(list((runs / FOLDER).glob("*/run.json"))) == 8
    for run in [runs / name for name in frame["name"]] + list((runs / FOLDER).iterdir()):
        steps = [line.step for line in read_metrics(run) if isinstance(line, StepLine)]
        first = 1 if (trunk := read_record(run).trunk) is None else 1 + int(trunk[-8:])
        assert steps == list(range(first, read_record(run).tokens // 256 + 1))
    assert main(["ladder", str(file)]) == 0


def _statuses(runs: Path) -> dict[str, str]:
    found = {}
    for path in (*runs.glob("*/run.json"), *runs.glob(f"{FOLDER}/*/run.json")):
        found[str(path.parent.relative_to(runs))] = json.loads(path.read_text())["status"]
    return found


def _finished(runs: Path) -> set[str]:
    return {name for name, status in _statuses(runs).items() if status == "finished"}


def _running(runs: Path) -> set[str]:
    return {name for name, status in _statuses(runs).items() if status == "running"}
