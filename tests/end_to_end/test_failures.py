"""Bad input and bad luck: an exit code, one short message, and nothing half-made that counts."""

import random
from pathlib import Path

import pytest

from scaling.record import StepLine, read_metrics, read_record
from tests.support import commands_on_ranks, console
from train.data.tokenizers.bpe import train_bpe

MODEL = ["model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "model.ffn_size=32", "model.vocab_size=260"]
LENGTH = ["train.steps=4", "train.sequence=32", "train.batch_tokens=256", "train.microbatch=4", "eval.tokens=512"]


@pytest.fixture
def overrides(tmp_path) -> list[str]:
    draw = random.Random(5)
    (tmp_path / "text.txt").write_text("".join("".join(draw.choices("abcdefgh ", k=60)) + "\n" for _ in range(300)))
    corpus = ["data=files", f"data.files=[{tmp_path}/text.txt]", "tokenizer=bytes", f"data.cache_dir={tmp_path}/cache"]
    return [f"run.dir={tmp_path}/runs", "run.name=a", *corpus, *MODEL, *LENGTH, "schedule.warmup_tokens=0"]


def missing_file(place: Path, overrides: list[str]) -> tuple[list[str], str]:
    return [f"data.files=[{place}/nothing.txt]"], "nothing.txt"


def not_utf8(place: Path, overrides: list[str]) -> tuple[list[str], str]:
    with open(place / "text.txt", "ab") as stream:
        stream.write(b"caf\xe9\n")
    return [], "not valid UTF-8 at byte offset 18303"


def too_little_text(place: Path, overrides: list[str]) -> tuple[list[str], str]:
    (place / "text.txt").write_text("abcdefgh" * 20)
    return [], "fewer than one batch"


def too_large_tokenizer(place: Path, overrides: list[str]) -> tuple[list[str], str]:
    train_bpe(["the cat sat on the mat " * 20, "a dog ate a bone"], 280, 10**6, lambda count: None).save(str(place / "t.json"))
    return ["tokenizer=file", f"tokenizer.path={place}/t.json"], "set model.vocab_size to at least 2"


def swapped_tokenizer(place: Path, overrides: list[str]) -> tuple[list[str], str]:
    assert console.warm("data", "prepare", *overrides).code == 0
    (tokenizer,) = (place / "cache").glob("*/tokenizer.json")
    tokenizer.write_text(tokenizer.read_text() + " ")
    return [], "is not the tokenizer that made these tokens"


MISTAKES = [missing_file, not_utf8, too_little_text, too_large_tokenizer, swapped_tokenizer]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_input_to_one_process(overrides, tmp_path, mistake):
    words, said = mistake(tmp_path, overrides)
    answer = console.warm("train", *overrides, *words)
    answer.assert_refused(said)
    assert answer.out == ""
    assert not (tmp_path / "runs" / "a").exists()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_input_to_two_processes_is_said_by_the_first_alone(group, overrides, tmp_path, mistake):
    words, said = mistake(tmp_path, overrides)
    first, second = group(2).run(console.on_rank, [*overrides, "parallel.shard=2", *words])
    console.Answer(*first).assert_refused(said)
    assert second == (2, "", "")
    assert not (tmp_path / "runs" / "a").exists()


def test_bad_input_through_the_launcher_is_said_once(overrides, tmp_path):
    words, said = too_little_text(tmp_path, overrides)
    answer = console.real("train", *overrides, "parallel.shard=2", *words)
    answer.assert_refused(said)
    assert answer.out == ""
    assert not (tmp_path / "runs" / "a").exists()


def test_a_full_disk_under_the_tokens_fails_the_run_before_it_begins(overrides, tmp_path):
    answer = console.warm("train", *overrides, limit_bytes=8192)
    answer.assert_refused("data.cache_dir=", code=1)
    assert answer.err.startswith("error: ")
    assert not (tmp_path / "runs" / "a").exists()
    assert not list((tmp_path / "cache").glob("*/index.json"))
    assert console.warm("train", *overrides).code == 0


def test_a_full_disk_at_the_beginning_leaves_no_run(overrides, tmp_path):
    assert console.warm("data", "prepare", *overrides).code == 0
    answer = console.warm("train", *overrides, limit_bytes=1000)
    answer.assert_refused("File too large", code=1)
    assert not (tmp_path / "runs" / "a").exists()


def test_a_full_disk_under_the_weights_fails_the_run(overrides, tmp_path):
    assert console.warm("data", "prepare", *overrides).code == 0
    answer = console.warm("train", *overrides, limit_bytes=20_000)
    answer.assert_refused("its last checkpoint could not be written", code=1)
    assert "no checkpoint could be written" in answer.err
    assert read_record(tmp_path / "runs" / "a").status == "failed"
    assert not list((tmp_path / "runs" / "a" / "checkpoints").iterdir())


def test_a_full_disk_under_the_metrics_of_two_processes_is_said_once(group, overrides, tmp_path):
    """The run goes on while its lines cannot be written, and fails at its end: not a word of the other rank's."""
    assert console.warm("data", "prepare", *overrides).code == 0
    words = [*overrides, "parallel.shard=2", "train.steps=60", "checkpoint.every_tokens=4096"]
    first, second = group(2).run(commands_on_ranks.with_full_disk, words, 6_000)
    console.Answer(*first).assert_refused("run a is trained", code=1)
    assert first[2].count("its lines are kept until it can") == 1
    assert second == (1, "", "")
    assert read_record(tmp_path / "runs" / "a").status == "failed"


DIVERGING = ["schedule.peak=1e30", "model.init_std=10"]


def test_a_diverging_run_stops_with_one_message(overrides, tmp_path):
    answer = console.warm("train", *overrides, *DIVERGING)
    answer.assert_refused("run a diverged and was stopped at step", "schedule.peak", code=1)
    run = tmp_path / "runs" / "a"
    record = read_record(run)
    assert record.status == "failed"
    assert record.ended is not None
    steps = [line for line in read_metrics(run) if isinstance(line, StepLine)]
    assert 1 <= len(steps) <= 4
    assert any(value is None for value in (steps[-1].loss, steps[-1].gradient_norm))


def test_a_diverging_run_of_two_processes_is_reported_by_the_first_alone(group, overrides, tmp_path):
    first, second = group(2).run(console.on_rank, [*overrides, "parallel.shard=2", *DIVERGING])
    console.Answer(*first).assert_refused("run a diverged and was stopped at step", code=1)
    assert second == (1, "", "")
    assert read_record(tmp_path / "runs" / "a").status == "failed"


def test_a_failed_run_starts_over(overrides, tmp_path):
    assert console.warm("train", *overrides, *DIVERGING).code == 1
    assert console.warm("train", *overrides, *DIVERGING).code == 1
    steps = [line.step for line in read_metrics(tmp_path / "runs" / "a") if isinstance(line, StepLine)]
    assert steps == sorted(set(steps))


def test_weights_that_only_the_last_update_ruined_are_not_a_finished_run(overrides, tmp_path):
    """The loss of a step is that before its update: only the evaluation sees what the last one did."""
    answer = console.warm("train", *overrides, "train.steps=1", "schedule=constant", "schedule.peak=3e38")
    answer.assert_refused("validation loss nan", code=1)
    assert read_record(tmp_path / "runs" / "a").status == "failed"
