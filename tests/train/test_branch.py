"""`foretrain branch` as it is typed. That a branch is the planned run is shown in tests/parity."""

import json

import pytest

from tests.support import console
from tests.support.letters import corpus_of_letters
from train.branch import words_of
from train.config import load_config
from train.folder.reading import load_run_config

SMALL = [
    *("model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "model.ffn_size=16", "model.vocab_size=257"),
    *("train.sequence=32", "train.batch_tokens=128", "train.microbatch=4", "eval.tokens=256", "schedule.warmup_tokens=256"),
    *("checkpoint.every_tokens=512", "checkpoint.keep_every=1", "health.step_timeout_seconds=null"),
]


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("branch")
    words = [
        f"run.dir={folder}",
        "run.name=trunk",
        *corpus_of_letters(folder, 200),
        *SMALL,
        "train.tokens=2048",
        "schedule=constant",
    ]
    answer = console.warm("train", *words)
    assert answer.code == 0, answer.err
    return folder / "trunk"


def test_a_branch_is_a_run_of_its_own_that_points_to_its_trunk(trunk):
    answer = console.warm("branch", str(trunk), "--at", "1024", "--decay-tokens", "1_000", "parallel.shard=1", "run.name=b")
    assert answer.code == 0, answer.err
    record = json.loads((trunk.parent / "b" / "run.json").read_text())
    assert record["trunk"] == str(trunk / "checkpoints" / "step_00000008")
    assert (record["status"], record["tokens"], record["schedule"]) == ("finished", 2048, "wsd")
    lines = [json.loads(line) for line in (trunk.parent / "b" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "learning_rate" in line]
    assert [line["step"] for line in steps] == list(range(9, 17))
    assert steps[-1]["learning_rate"] == 0
    again = console.warm("branch", str(trunk), "--at", "1024", "--decay-tokens", "1e3", "run.name=b")
    assert (again.code, "b is finished" in again.out) == (0, True), again.err


def test_a_branch_goes_on_by_itself_even_where_its_trunk_is_gone(trunk, tmp_path):
    import shutil

    copy = shutil.copytree(trunk, tmp_path / "trunk", ignore=shutil.ignore_patterns(".lock"))
    words = [str(copy), "--at", "512", "--decay-tokens", "512", f"run.dir={tmp_path}", "run.name=b"]
    assert console.warm("branch", *words).code == 0
    shutil.rmtree(copy / "checkpoints")
    assert "b is finished" in console.warm("branch", *words).out


def test_a_branch_of_another_trunk_is_not_taken_for_this_one(trunk, tmp_path):
    import shutil

    words = ["--at", "512", "--decay-tokens", "512", f"run.dir={tmp_path}", "run.name=b"]
    copies = [shutil.copytree(trunk, tmp_path / name, ignore=shutil.ignore_patterns(".lock")) for name in ("one", "two")]
    assert console.warm("branch", str(copies[0]), *words).code == 0
    console.warm("branch", str(copies[1]), *words).assert_refused("holds another run", "run.trunk")
    answer = console.warm("branch", str(copies[0]), *words[:2], "--decay-tokens", "256", *words[4:])
    answer.assert_refused("holds another run", "its length: was 1,024 tokens, is 768")
    assert "train.steps" not in answer.err


def test_a_branch_in_other_batches_says_its_own_steps(trunk):
    words = ["--at", "1024", "--decay-tokens", "1024", "train.batch_tokens=256", "run.name=wide_batches"]
    answer = console.warm("branch", str(trunk), *words)
    assert answer.code == 0, answer.err
    assert "2,048 tokens in 12 steps of 256" in answer.err.replace("\n", " ")
    assert "unlike its trunk: train.batch_tokens: was 128, is 256\n" in answer.err
    assert "train.steps" not in answer.err  # nobody asked for steps, and the tokens are the same


def test_what_cannot_be_branched_is_refused(trunk, tmp_path):
    def refused(*words: str, says: str) -> None:
        console.warm("branch", *words).assert_refused(says)

    run, length = str(trunk), ["--decay-tokens", "512"]
    refused(run, "--at", "1000", *length, says="no checkpoint of")
    refused(run, "--at", "1000", *length, says="the nearest are at 512, 1024, 1536")
    refused(run, "--at", "-5", *length, says="--at -5: a number of tokens is a whole number from 1 to 1e+15")
    refused(run, "--at", "512", "--decay-tokens", "half", says="--decay-tokens half")
    refused(run, "--at", "512", *length, "schedule=cosine", says="a branch decays off its trunk's own schedule")
    refused(run, "--at", "512", *length, "schedule.warmup_tokens=1000", says="or less, or a smaller --decay-tokens")
    refused(run, "--at", "512", *length, "model.hidden_size=32", "run.name=wide", says="is of a run that differs in")
    refused(run, "--at", "512", *length, "schedule.decay_shap=cosine", says="did you mean 'schedule.decay_shape'?")
    refused(run, "--at", "512", *length, "train.tokens=9999", says="train.tokens follows from --at and --decay-tokens")
    refused(run, "--at", "512", *length, "schedule.decay_fraction=0.1", says="schedule.decay_fraction follows from --at")
    refused(str(tmp_path), "--at", "512", *length, says="is not a run")
    refused(str(trunk.parent / "b"), "--at", "512", *length, says=f"(it is a branch itself, of {trunk})")
    refused(run, "--at", "512", "--decay-tokens", "1e300", says="--decay-tokens 1e300: a number of tokens is a whole number")
    refused(run, "--at", "512", *length, "optimizer.mup=true", "run.name=mup", says="optimizer.mup: was false, is true")
    refused(run, "--at", "512", *length, "model.logit_multiplier=0.5", "run.name=m", says="model.logit_multiplier")
    checkpoint = str(trunk / "checkpoints" / "step_00000008")
    refused(checkpoint, "--at", "512", *length, says=f"it is a checkpoint of the run {trunk}")
    assert not (trunk.parent / "wide").exists()
    at = trunk / "checkpoints" / "step_00000008"
    words = ["train", f"run.dir={tmp_path}", f"run.trunk={at}", "train.tokens=1024", *SMALL]
    corpus = corpus_of_letters(trunk.parent, 200)
    console.warm(*words, *corpus).assert_refused("has 1024 tokens, this run is to have 1024: raise train.tokens")
    console.warm(*words, *corpus, "optimizer=muon").assert_refused("optimizer.name")
    console.warm(*words, *corpus, f"run.trunk={tmp_path}").assert_refused(f"run.trunk={tmp_path} is no checkpoint")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["data=files", "data.files=['a b.txt','it\\'s.txt']", 'data.document_separator="<|x|> \\"y\\""', "tokenizer=bytes"],
        ["data=files", "data.files=[x]", r'data.document_separator="a\b\"c\\"'],
        ["model.hidden_size=256", "model.num_heads=4", "model.head_dim=32", "schedule=wsd_s", "schedule.ends=[4096,8192]"],
        ["optimizer.mup=true", "schedule=power", "train.tokens=null", "train.steps=7", "run.name=007", "experiment=demo"],
        ["optimizer=muon", "health.step_timeout_seconds=null", "model.num_kv_heads=2", "run.dir=/some/where"],
    ],
    ids=str,
)
def test_a_configuration_becomes_words_that_come_to_it(words):
    config = load_config(words)
    assert load_config(words_of(config.as_dict())) == config


def test_a_branch_takes_everything_else_from_its_trunk(trunk):
    before, after = load_run_config(trunk), load_run_config(trunk.parent / "b")
    for section in ("model", "data", "tokenizer", "optimizer", "eval", "checkpoint"):
        assert getattr(before, section) == getattr(after, section)
