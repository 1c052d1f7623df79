"""Rules across fields: all violations at once, with their numbers, and the line to type instead."""

import re
import shlex

import pytest

from common.errors import UserError
from train.config import load_config, require
from train.config.rules import check

# Defaults may change; what is tested here has its numbers written out.
BASE = [
    *("model.hidden_size=128", "model.num_layers=4", "model.num_heads=4", "model.ffn_size=384", "model.vocab_size=2048"),
    *("train.tokens=1500000", "train.batch_tokens=8192", "train.sequence=256", "train.microbatch=8"),
    *("schedule.peak=3e-3", "schedule.warmup_tokens=80000"),
]


def problems(*overrides: str, world_size: int = 1) -> list[str]:
    typed = set(overrides)
    length = ["train.tokens=null"] if any(word.startswith("train.steps=") for word in typed) else []
    config = load_config([*BASE, "schedule.decay_fraction=0.2", *length, *overrides])
    return list(check(config, world_size=world_size, overrides=overrides))


def test_the_defaults_and_the_demo_break_no_rule():
    assert problems() == []
    assert problems("experiment=demo", world_size=2) == []


BROKEN = {
    "train.batch_tokens=8000": ["8000", "256 x 8 x 1 = 2048", "6144 or 8192"],
    "model.num_kv_heads=3": ["model.num_heads=4", "model.num_kv_heads=3"],
    "tokenizer.vocab_size=4000": ["4000", "model.vocab_size=2048", "at least 4000"],
    "schedule.floor=1": ["schedule.floor=1", "schedule.peak=0.003"],
    "schedule.warmup_tokens=9000000": ["9000000", "301466", "1507328"],  # 20 % of 184 steps of 8,192
    "parallel.tensor=2": ["the layout tensor 2 needs 2 processes, there is 1"],
}


@pytest.mark.parametrize("override", BROKEN)
def test_a_broken_rule_is_shown_with_its_numbers(override):
    said = "\n".join(problems(override))
    assert all(number in said for number in BROKEN[override]), said


def test_all_broken_rules_are_shown_at_once():
    said = problems(*BROKEN)
    assert len(said) == len(BROKEN) + 1  # two tensor ranks also need heads that they divide
    words = [*BASE, *BROKEN]
    with pytest.raises(UserError) as caught:
        require(load_config(words), world_size=1, overrides=list(BROKEN))
    assert set(str(caught.value).splitlines()) == set(said)


@pytest.mark.parametrize(
    "overrides, number",
    [
        (["model.ffn_size=385"], "model.ffn_size=385"),
        (["model.num_heads=2", "model.num_kv_heads=1"], "model.num_kv_heads=1"),
        (["model.vocab_size=2049"], "model.vocab_size=2049"),
        (["train.sequence=255", "train.batch_tokens=2040"], "train.sequence=255"),
    ],
)
def test_what_tensor_parallelism_cannot_divide(overrides, number):
    assert any(
        number in line and "parallel.tensor=2" in line for line in problems("parallel.tensor=2", *overrides, world_size=2)
    )


def test_what_a_pipeline_cannot_divide():
    assert any("a stage would be empty" in line for line in problems("parallel.pipeline=5", world_size=5))


@pytest.mark.parametrize(
    "axes, overrides, said",
    [
        (
            "context=3",
            [],
            "train.sequence=256 is not divisible by 6, as parallel.context=3 x 2 chunks (zigzag) need: the nearest is 252 or",
        ),
        ("context=2 tensor=4", [], None),
        (
            "context=2 tensor=4",
            ["train.sequence=36"],
            "by 8, as parallel.context=2 x 2 chunks (zigzag) and parallel.tensor=4 need",
        ),
        ("context=4", ["train.sequence=4"], "the nearest is 8"),
        ("context=4 context_partition=balanced", ["train.sequence=72"], "not divisible by 32"),
        ("context=8 context_method=ring", [], None),
        ("context=8 context_method=ulysses", [], "4 query and 4 key/value heads do not divide among parallel.context=8"),
        ("context=4 context_method=ulysses", ["model.num_kv_heads=2"], None),
        ("context=4 context_method=ulysses tensor=2", ["model.num_kv_heads=2"], "2 query and 1 key/value heads on each of"),
        (
            "context=2 context_method=ulysses",
            ["model.num_heads=6", "model.head_dim=32", "model.num_kv_heads=3"],
            "6 query and 3",
        ),
    ],
)
def test_what_context_parallelism_cannot_divide(axes, overrides, said):
    words = [*overrides, "train.batch_tokens=9216", "train.microbatch=1", *(f"parallel.{axis}" for axis in axes.split())]
    found = [line for line in problems(*words, world_size=8) if "parallel.context" in line and "processes" not in line]
    assert len(found) == (said is not None), found
    assert said is None or said in found[0]


def test_unknown_methods_of_context_parallelism_are_told_the_known_ones():
    for word, known in (("method=rings", "ring_bidirectional"), ("topology=torus", "switch")):
        with pytest.raises(UserError, match=rf"parallel\.context_{word}: input should be .*{known}"):
            load_config([f"parallel.context_{word}"])


@pytest.mark.parametrize(
    "schedule, microbatch, said",
    [
        ("1f1b", 8, "parallel.pipeline_schedule=1f1b with 4 stages needs at least 4 micro-batches a step, there are 2"),
        ("dualpipev", 4, "with 8 stages needs at least 8 micro-batches a step, there are 4"),
        ("interleaved", 8, "with 8 stages needs at least 4 micro-batches a step, there are 2"),
    ],
)
def test_a_pipeline_needs_enough_microbatches(schedule, microbatch, said):
    words = [
        "train.batch_tokens=4096",
        "parallel.pipeline=4",
        f"parallel.pipeline_schedule={schedule}",
        f"train.microbatch={microbatch}",
    ]
    assert any(said in line for line in problems("model.num_layers=8", *words, world_size=4))
    assert not problems("model.num_layers=8", *words[:-1], "train.microbatch=2", world_size=4)


@pytest.mark.parametrize("schedule", ["zbv", "dualpipev"])
def test_a_backward_pass_in_two_parts_has_no_selective_recomputation(schedule):
    words = ["parallel.pipeline=2", f"parallel.pipeline_schedule={schedule}", "train.microbatch=1"]
    assert not problems(*words, "parallel.recompute=full", world_size=2)
    assert any("takes two" in line for line in problems(*words, "parallel.recompute=selective", world_size=2))


def test_both_lengths_and_neither_are_refused():
    (said,) = problems("train.steps=2", "train.tokens=16384", "schedule.warmup_tokens=0")
    assert "train.tokens=16384 and train.steps=2 are both set" in said
    (said,) = problems("train.tokens=null")
    assert "neither" in said


def test_a_batch_smaller_than_one_pass_is_told_the_smallest():
    (said,) = problems("train.batch_tokens=1000")
    assert said.endswith("type train.batch_tokens=2048")


def test_bytes_need_257_rows():
    (said,) = problems("tokenizer=bytes", "model.vocab_size=256")
    assert "257" in said
    assert problems("tokenizer=bytes", "model.vocab_size=257") == []


def test_warmup_and_decay_may_fill_the_run_exactly():
    whole = ["train.steps=10", "schedule.decay_fraction=0.5"]
    assert problems(*whole, "schedule.warmup_tokens=40960") == []
    assert len(problems(*whole, "schedule.warmup_tokens=40961")) == 1


def test_a_constant_schedule_has_no_decay_to_lower():
    length = [*BASE, "train.tokens=null", "train.steps=1", "schedule=constant"]
    assert list(check(load_config([*length, "schedule.warmup_tokens=8192"]), world_size=1)) == []
    (said,) = check(load_config([*length, "schedule.warmup_tokens=8193"]), world_size=1)
    assert "decay_fraction" not in said


@pytest.mark.parametrize(
    "override",
    ["run.name=a", 'data.files=["a b.txt"]', "data.document_separator='\"$HOME\"'", r"data.document_separator='`x` !\\'"],
)
def test_the_line_to_type_is_read_back_by_a_shell_as_what_was_typed(override):
    words = ["data=files", "data.files=[a]", override, "parallel.shard=2"]
    (said,) = problems(*words)
    line = said.split("Type: ")[1].split("   (or: ")[0]
    assert shlex.split(line) == ["foretrain", "train", *words]
    torchrun = said.split("(or: ")[1].removesuffix(")")
    assert shlex.split(torchrun) == ["torchrun", "--nproc-per-node", "2", "-m", "train", *words]


@pytest.mark.parametrize(
    "overrides, world_size, nearest",
    [
        (["parallel.replicate=2"], 8, "parallel.shard=4"),
        (["parallel.shard=2"], 3, "parallel.pipeline=3 parallel.shard=1"),  # three data ranks do not divide the batch
    ],
)
def test_more_processes_than_the_layout_fills(overrides, world_size, nearest):
    started, advice = problems(*overrides, "train.microbatch=4", world_size=world_size)
    assert f"{world_size} processes were started" in started
    assert f"product of parallel.replicate, .shard, .tensor, .pipeline and .context {world_size}" in started
    assert set(advice.split(": ")[1].split()) == set(nearest.split())


@pytest.mark.parametrize(
    "overrides, world_size, nearest",
    [
        (["parallel.tensor=4", "model.num_kv_heads=2"], 4, "(4 processes): parallel.shard=2 parallel.tensor=2"),
        (["parallel.pipeline=8", "train.microbatch=1"], 8, "(8 processes): parallel."),
        (["parallel.pipeline=4", "parallel.pipeline_schedule=zbv", "train.microbatch=1"], 4, "pipeline_schedule=1f1b"),
        (["parallel.shard=3", "train.batch_tokens=6144"], 6, "(6 processes): parallel."),
        (["parallel.context=3"], 3, "(3 processes): parallel."),
        (["parallel.context=8", "parallel.context_method=ulysses"], 8, "(8 processes): parallel."),
    ],
)
def test_the_nearest_possible_layout_is_named(overrides, world_size, nearest):
    said = [line for line in problems(*overrides, world_size=world_size) if "nearest possible layout" in line]
    assert len(said) == 1
    assert nearest in said[0]
    typed = said[0].split(": ")[1].split()
    assert problems(*overrides, *typed, world_size=world_size) == []  # later words take the place of earlier ones


def test_no_layout_is_named_where_none_is_possible():
    assert not [line for line in problems("train.batch_tokens=8000") if "nearest possible layout" in line]


LENGTH = ["train.tokens=819200", "train.batch_tokens=8192"]


@pytest.mark.parametrize(
    "overrides, said",
    [
        (
            ["schedule=wsd", "schedule.decay_fraction=0.95"],
            "schedule.warmup_tokens=80000 and the decay of 778240 tokens do not fit",
        ),
        (["schedule=power", "schedule.floor=0.0029", "schedule.a=1"], "schedule.floor=0.0029 is above 0.00203"),
        (["schedule=cosine", "schedule.floor=0.1"], "schedule.floor=0.1 is above schedule.peak=0.003"),
        (
            ["schedule=cosine", "schedule.warmup_tokens=819201"],
            "do not fit into the run's 819200 tokens: type schedule.warmup_tokens=40960 or less",
        ),
        (["schedule=wsd_s", "schedule.ends=[409600,81920]"], r"schedule.ends=[409600, 81920]: they must grow"),
        (["schedule=wsd_s", "schedule.ends=[409600,900000]"], "the run ends at 819200 tokens, before 900000"),
        (["schedule=wsd_s", "schedule.ends=[409601]"], "409601 tokens are not whole steps; the nearest: 409600 and 417792"),
        (["schedule=wsd_s", "schedule.ends=[81920]"], "do not fit into the first period's 81920 tokens"),
        (["train.batch_warmup_tokens=1000"], "train.batch_warmup_tokens=1000 needs the size of the first batch"),
        (["train.batch_warmup_start=2048"], "train.batch_warmup_start=2048 needs a length: set train.batch_warmup_tokens"),
        (["train.batch_warmup_start=6144", "train.batch_warmup_tokens=1"], "not a multiple of its increment"),
        (
            ["train.batch_warmup_start=1024", "train.batch_warmup_tokens=1"],
            "train.batch_warmup_start=1024 is not a multiple of",
        ),
        (["optimizer.mup=true", "model.initial_weights=somewhere"], "muP is a way to start from random weights"),
    ],
)
def test_schedules_and_batches_that_do_not_fit(overrides, said):
    found = list(check(load_config([*BASE, *LENGTH, *overrides]), world_size=1))
    assert any(said in line for line in found), found


@pytest.mark.parametrize("axis", ["shard", "tensor", "context"])
def test_muon_refuses_layouts_that_split_matrices(axis):
    found = problems("optimizer=muon", f"parallel.{axis}=2", world_size=2)
    assert any("optimizer=muon needs whole matrices" in line and f"parallel.{axis}=2" in line for line in found)


@pytest.mark.parametrize("schedule", ["constant", "wsd", "power", "cosine", "wsd_s"])
def test_every_schedule_has_defaults_that_fit(schedule):
    assert list(check(load_config([f"schedule={schedule}"]), world_size=1)) == []


@pytest.mark.parametrize(
    "override, said",
    [
        ("schedule.peak=0", "schedule.peak=0: input should be greater than 0"),
        ("schedule.peak=-1e-3", "schedule.peak=-0.001: input should be greater than 0"),
        ("schedule.decay_fraction=1.5", "schedule.decay_fraction=1.5: input should be less than or equal to 1"),
        ("schedule.decay_shape=triangle", "schedule.decay_shape=triangle: input should be 'linear', 'one_minus_sqrt'"),
        ("schedule.warmup_tokens=-1", "schedule.warmup_tokens=-1: input should be greater than or equal to 0"),
    ],
)
def test_values_that_no_schedule_has(override, said):
    with pytest.raises(UserError) as caught:
        load_config([override])
    assert said in str(caught.value)


def test_a_run_shorter_than_the_demos_warmup_is_told_what_to_type():
    (said,) = problems("train.tokens=50000")
    words = re.search(r"type (schedule\.warmup_tokens=\d+) or less", said)
    assert words is not None, said
    assert not problems("train.tokens=50000", words[1])


def test_a_large_preset_is_told_the_batch_to_type():
    def of_8b(*words: str) -> list[str]:
        config = load_config(["model=8b", "parallel.shard=8", "train.batch_tokens=131072", "train.microbatch=8", *words])
        return list(check(config, world_size=8))

    words = re.search(r"type (train\.batch_tokens=\d+), or (train\.microbatch=\d+)", of_8b()[0])
    assert words is not None, of_8b()
    for word in words.groups():
        assert not of_8b(word)


def test_a_vocabulary_that_does_not_divide_is_told_the_next():
    said = problems("tokenizer=bytes", "model.vocab_size=257", "parallel.tensor=2", world_size=2)[0]
    assert "type model.vocab_size=258" in said
    assert not problems("tokenizer=bytes", "model.vocab_size=258", "parallel.tensor=2", world_size=2)
