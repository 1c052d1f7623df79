"""The main job from the console: what it writes, what it says, and what a second start does."""

import json
import math
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from scaling.record import EvaluationLine, StepLine, read_metrics, read_record
from tests.support import commands_on_ranks, console
from tests.support.processes import is_alive, workers_of
from train.build.model import build_model
from train.config import load_config
from train.folder.reading import load_run_config
from train.trained.checkpoint import load_weights

VOCAB = 260
STEPS = 12
MODEL = ["model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "model.ffn_size=32", f"model.vocab_size={VOCAB}"]
LENGTH = [f"train.steps={STEPS}", "train.sequence=32", "train.batch_tokens=256", "train.microbatch=4", "eval.tokens=512"]
SCHEDULE = ["schedule.peak=2e-2", "schedule.warmup_tokens=512", "schedule.decay_fraction=0.25"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    draw = random.Random(3)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 5))) for _ in range(40)]
    (folder / "text.txt").write_text("".join(" ".join(draw.choices(words, k=8)) + "\n" for _ in range(600)))
    return folder


@pytest.fixture(scope="module")
def overrides(place) -> list[str]:
    corpus = ["data=files", f"data.files=[{place}/text.txt]", "tokenizer=bytes", f"data.cache_dir={place}/cache"]
    return [f"run.dir={place}/runs", *corpus, *MODEL, *LENGTH, *SCHEDULE]


@pytest.fixture(scope="module")
def answer(overrides) -> console.Answer:
    """The job of this module, by the real command on two processes."""
    return console.real("train", "run.name=job", "parallel.shard=2", "eval.every_tokens=1024", *overrides)


@pytest.fixture
def run(answer, place) -> Path:
    assert answer.code == 0, answer.err
    return place / "runs" / "job"


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_the_command_says_what_came_out(answer, run):
    for row in ("validation loss", "counted bigram", "bits per byte", "speed", "MFU", "peak memory", "wall time", "loss curve"):
        assert row in answer.out
    assert f"{read_record(run).loss:.4f} nats/token" in answer.out
    assert "Traceback" not in answer.err
    assert "Warning" not in answer.err
    assert answer.err.count("data: ") == 1


def test_the_record_has_plausible_numbers(run):
    record = read_record(run)
    assert (record.status, record.world_size, record.layout["shard"]) == ("finished", 2, 2)
    assert record.tokens == record.fp_tokens == STEPS * 256
    assert record.loss is not None
    assert 1.0 < record.loss < math.log(VOCAB) - 0.5
    assert record.losses == {"validation": record.loss}
    assert record.bits_per_byte == pytest.approx(record.loss / math.log(2), rel=0.05)  # bytes, and ends of text
    assert record.flops == 6.0 * record.parameters * record.tokens
    assert record.parameters == sum(tensor.numel() for tensor in load_weights(run).values())
    assert record.tokens_per_second is not None
    assert record.tokens_per_second > 0
    assert record.mfu is not None
    assert record.mfu_causal is not None
    assert 0 < record.mfu_causal < record.mfu < 1
    assert record.peak_memory_bytes is not None
    assert record.peak_memory_bytes > 3 * 4 * record.parameters / 2  # a rank's half of weights and two moments
    assert record.ended is not None
    assert record.started <= record.ended
    assert record.config_hash == load_run_config(run).identity_hash()


def test_the_metrics_have_every_step_and_every_evaluation_once(run):
    lines = list(read_metrics(run))
    steps = [line for line in lines if isinstance(line, StepLine)]
    evaluations = [line for line in lines if isinstance(line, EvaluationLine)]
    assert [(line.step, line.tokens) for line in steps] == [(step, step * 256) for step in range(1, STEPS + 1)]
    assert [line.tokens for line in evaluations] == [1024, 2048, 3072]
    assert evaluations[-1].validation["validation"] == read_record(run).loss
    assert steps[0].loss == pytest.approx(math.log(VOCAB), abs=0.2)
    assert [line.phase for line in steps] == ["warmup"] + 8 * ["stable"] + 3 * ["decay"]
    assert (steps[0].learning_rate, steps[1].learning_rate, steps[-1].learning_rate) == (1e-2, 2e-2, 0.0)


def test_the_folder_has_all_that_the_design_lists(run):
    assert load_run_config(run).parallel.shard == 2
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "validation loss" in (run / "logs" / "rank_0000.log").read_text()
    assert (run / "checkpoints" / f"step_{STEPS:08d}" / "manifest.json").is_file()


def test_a_second_start_shows_the_table_and_touches_nothing(run, answer, overrides):
    before = contents(run)
    again = console.warm("train", "run.name=job", "parallel.shard=1", "eval.every_tokens=1024", *overrides)
    assert again.code == 0
    assert again.err == ""
    assert f"{run} is finished." in again.out
    assert again.out.split("\n", 1)[1] == answer.out
    assert contents(run) == before


def test_a_second_start_on_two_processes_says_it_once(group, run, overrides):
    before = contents(run)
    first, second = group(2).run(console.on_rank, ["run.name=job", "parallel.shard=2", *overrides])
    assert (first[0], second) == (0, (0, "", ""))
    assert first[1].count("is finished.") == 1
    assert contents(run) == before


def test_another_run_of_that_name_is_refused(run, overrides):
    before = contents(run)
    other = console.warm("train", "run.name=job", *overrides, "model.hidden_size=32")
    other.assert_refused("model.hidden_size: was 16, is 32", "run.name")
    console.warm("train", "run.name=job", *overrides, "run.resume=never").assert_refused("run.resume=never")
    assert contents(run) == before


@pytest.mark.slow  # that torchrun starts a run, and restarts it, is shown in test_recovery
def test_torchrun_gives_the_same_losses(run, overrides, place):
    torchrun = (str(console.COMMAND.with_name("torchrun")), "--nproc-per-node", "2", "-m", "train")
    answer = console.real("run.name=torchrun", "parallel.replicate=2", *overrides, command=torchrun)
    assert answer.code == 0, answer.err
    losses = [
        [line.loss for line in read_metrics(place / "runs" / name) if isinstance(line, StepLine)]
        for name in ("job", "torchrun")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_generate_is_a_function_of_its_seed(group, run):
    def draw(seed: int, temperature: float = 0.8, top_k: int = 50) -> str:
        (text,) = group(1).run(commands_on_ranks.generate, str(run), [], "abc ", temperature, top_k, seed)
        return text

    assert draw(1) == draw(1) != draw(2)
    assert draw(1).startswith("abc ")
    assert draw(1, temperature=0.0) == draw(2, temperature=0.0)
    # Drawing among one, and drawing so coldly that the likeliest has all the weight, are greedy as well.
    assert draw(1, top_k=1) == draw(2, temperature=1e-320, top_k=0) == draw(3, temperature=0.0)


def test_temperature_zero_is_greedy_by_hand(run):
    config = load_run_config(run)
    model = build_model(config.model, torch.float32, torch.device("cpu"))
    model.load_state_dict(load_weights(run))
    ids = list(b"abc ")
    for _ in range(40):
        window = torch.tensor([ids[-config.train.sequence :]])
        ids.append(int(model(window, torch.zeros_like(window))[0, -1].argmax()))
        if ids[-1] == 256:
            ids.pop()
            break
    expected = Tokenizer.from_file(str(run / "tokenizer.json")).decode(ids, skip_special_tokens=False)
    answer = console.warm("generate", str(run), "--prompt", "abc ", "--tokens", "40", "--temperature", "0")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == expected + "\n"


@pytest.mark.parametrize(
    "layout", [["tensor=2"], ["pipeline=2"], ["context=2"], ["shard=2"], ["tensor=2", "pipeline=2"]], ids="_".join
)
def test_generation_is_the_same_on_every_layout(group, place, run, overrides, layout):
    """Of a run that was trained on a pipeline, too. The prompt's five tokens do not divide by two."""
    whole = place / "runs" / "two_layers"
    if not whole.exists():
        words = [
            *overrides,
            "run.name=two_layers",
            "model.num_layers=2",
            "parallel.pipeline=2",
            "parallel.pipeline_schedule=gpipe",
        ]
        assert [code for code, _, _ in group(2).run(console.on_rank, words)] == [0, 0]
    words = [f"parallel.{axis}" for axis in layout]
    draw = (0.8, 50, 1)
    single = group(1).run(commands_on_ranks.generate, str(whole), [], "abcd ", *draw)
    assert len(single[0]) > len("abcd ") + 5
    size = 2 ** len(layout)
    assert group(size).run(commands_on_ranks.generate, str(whole), words, "abcd ", *draw) == single * size


@pytest.mark.slow  # by the launcher that starts a run's processes, which `answer` goes through
def test_generate_starts_the_processes_its_layout_needs(run):
    words = ["generate", str(run), "--prompt", "abc ", "--tokens", "5"]
    two = console.real(*words, "parallel.tensor=2")
    assert (two.code, two.err) == (0, "")
    assert two.out == console.warm(*words).out


def test_generate_refuses_layouts_that_do_not_fit(run):
    words = ["generate", str(run), "--prompt", "abc ", "--tokens", "5"]
    refused = console.warm(*words, "parallel.tensor=3")
    refused.assert_refused("model.num_heads=2, ", "are not divisible by parallel.tensor=3", "(2 processes): parallel.tensor=2")
    console.warm(*words, "parallel.tensor=x").assert_refused("parallel.tensor=x")


def test_an_empty_prompt_starts_a_text(run):
    answer = console.warm("generate", str(run), "--prompt", "", "--tokens", "5")
    assert (answer.code, answer.err) == (0, "")


def test_generate_refuses_what_is_no_run(run, place):
    console.warm("generate", str(place), "--prompt", "a").assert_refused("is not a run")
    assert console.warm("generate", str(run)).code == 2
    assert console.warm("generate", str(run), "--prompt", "a", "--temperature", "-1").code == 2


def test_a_killed_launcher_takes_its_workers_along_and_the_lock_is_free(overrides, place):
    words = ["train", "run.name=killed", *overrides, "train.steps=1000000", "parallel.shard=2"]
    path = place / "runs" / "killed"
    launcher = console.start(*words)
    try:
        deadline = time.monotonic() + 120
        while not (path / "metrics.jsonl").is_file() or (path / "metrics.jsonl").stat().st_size == 0:
            assert launcher.poll() is None, launcher.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        workers = workers_of(launcher.pid)
        assert len(workers) == 2
        holder = json.loads((path / ".lock").read_text())["process"]
        assert holder in workers
        second = console.warm("train", "run.name=killed", *overrides, "train.steps=1000000", lock_wait=0.1)
        second.assert_refused(f"in use by process {holder} on ", "run.name")
    finally:
        os.kill(launcher.pid, signal.SIGKILL)
        launcher.communicate(timeout=60)  # its pipes close when the last worker is dead
    deadline = time.monotonic() + 30
    while any(is_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlive their launcher"
        time.sleep(0.05)
    assert read_record(path).status == "running"
    fresh = console.warm("train", "run.name=killed", *overrides, "train.steps=1000000", "run.seed=1", lock_wait=0.0)
    fresh.assert_refused("run.seed: was 0, is 1")  # not: in use


def test_interrupting_ends_the_run_in_one_line(overrides, place):
    """As Ctrl-C does: the signal goes to the launcher, which stops its workers."""
    path = place / "runs" / "interrupted"
    launcher = console.start("train", "run.name=interrupted", *overrides, "train.steps=1000000")
    try:
        deadline = time.monotonic() + 120
        while not (path / "metrics.jsonl").is_file() or (path / "metrics.jsonl").stat().st_size == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        launcher.send_signal(signal.SIGINT)
        _, err = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert launcher.returncode == 130
    assert "Traceback" not in err
    assert re.fullmatch(
        r"stopped by SIGINT at step \d+ \([\d,]+ tokens\); saved. The same command goes on", err.splitlines()[-1]
    )
    assert read_record(path).status == "preempted"


def test_the_configuration_of_the_run_is_that_of_the_words(run, overrides):
    words = ["run.name=job", "parallel.shard=2", "eval.every_tokens=1024", *overrides]
    assert load_run_config(run) == load_config(words)


def test_the_step_before_an_evaluation_has_a_time_of_its_own(run):
    """The seconds of all steps are measured alike: no line has the time of another one's step, or none."""
    seconds = [line.step_seconds for line in read_metrics(run) if isinstance(line, StepLine)]
    evaluated = [line.step for line in read_metrics(run) if isinstance(line, EvaluationLine)]
    assert len(evaluated) > 1
    assert len(set(seconds)) == len(seconds)
    typical = sorted(seconds)[len(seconds) // 2]
    for step in evaluated:  # a step takes milliseconds, and reading the clock twice microseconds
        assert seconds[step - 1] > typical / 500
