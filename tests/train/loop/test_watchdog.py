"""Real processes that hang, and what the watchdog says of them."""

import re
import sys
import threading
from unittest import mock

import pytest
import torch

from parallel.context.local import Transfers
from tests.support import hanging_ranks
from tests.support.group import CaseFailed, Group
from train.loop.whereabouts import Position, describe, find_position

CASE = "tests/support/hanging_ranks.py"


@pytest.fixture
def group():
    """On the CPU whatever the others run on: the places that are expected are those where gloo waits."""
    return Group


@pytest.fixture
def reports(tmp_path):
    return hanging_ranks.Reports(tmp_path)


def test_a_rank_that_awaits_a_part_of_a_sequence_waits_for_others():
    class Work:
        def wait(self):
            begun.set()
            done.wait()

    def attend():
        Transfers(None, _works=[Work()]).wait()

    begun, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=attend)
    thread.start()
    begun.wait()
    # Work is C++ and has no frame of its own; here it has one, and the standard library's below it.
    frames = sys._current_frames()[thread.ident]
    while frames.f_code is not Transfers.wait.__code__:
        frames = frames.f_back
    with mock.patch("sys._current_frames", return_value={thread.ident: frames}):
        found = find_position("step 1", thread.ident, torch.device("cpu"), frozenset({"tests", "parallel"}))
    done.set()
    thread.join()
    assert found.collective == "exchange of context ranks"
    assert found.where.endswith("attend")


def only(reports):
    """The lines of the only message there was."""
    (message,) = reports.read()
    assert len(message.splitlines()) <= 5
    return message.splitlines()


def stacks(folder, rank):
    return (folder / "logs" / f"stacks_rank_{rank:04d}.txt").read_text()


def test_names_the_rank_that_loads_while_others_reduce(group, tmp_path, reports):
    group(3).run(hanging_ranks.one_rank_loads, tmp_path)
    head, blamed, waiting = only(reports)
    assert head == f"step 2 has taken longer than its limit of 6 s; stacks: {tmp_path}/logs/stacks_rank_*.txt"
    assert re.fullmatch(rf"  rank 1: in no collective, {CASE}:\d+ slow_batch", blamed)
    assert re.fullmatch(rf"  ranks 0, 2: waiting in all_reduce of default_pg, {CASE}:\d+ one_rank_loads", waiting)
    for rank in range(3):
        written = stacks(tmp_path, rank)
        assert f"rank {rank}, step 2: " in written.splitlines()[0]
        assert "in one_rank_loads" in written
        assert ("in slow_batch" in written) == (rank == 1)
        assert ("in all_reduce" in written) == (rank != 1)


def test_names_both_ranks_that_receive_from_each_other(group, tmp_path, reports):
    group(2).run(hanging_ranks.ranks_receive_from_each_other, tmp_path)
    _, *lines = only(reports)
    assert [line.split(f", {CASE}")[0] for line in lines] == [
        "  rank 1: waiting in recv from rank 0",
        "  rank 0: waiting in recv from rank 1",
    ]


@pytest.mark.parametrize("stopped", [0])
def test_a_stopped_rank_does_not_answer(group, tmp_path, reports, stopped):
    group(3).run(hanging_ranks.one_rank_is_stopped, tmp_path, stopped)
    _, blamed, silent, waiting = only(reports)
    assert blamed.startswith("  rank 2: in no collective, ")
    assert silent.startswith(f"  rank {stopped}: no answer (dead, stopped, ")
    assert waiting.startswith(f"  rank {1 - stopped}: waiting in all_reduce")


def test_a_rank_that_keeps_the_interpreter_does_not_answer_and_its_stacks_are_written(group, tmp_path, reports):
    group(2).run(hanging_ranks.one_rank_keeps_the_interpreter, tmp_path)
    _, silent, waiting = only(reports)
    assert silent.startswith("  rank 1: no answer")
    assert waiting.startswith("  rank 0: waiting in all_reduce")
    assert "in keep_the_interpreter" in stacks(tmp_path, 1)


@pytest.mark.parametrize("limit", [3.0, None])
def test_says_and_leaves_nothing_where_nothing_hangs(group, tmp_path, limit):
    assert group(2).run(hanging_ranks.nothing_hangs, tmp_path, limit) == [([], [])] * 2


def test_a_suspended_job_is_no_hang(group, tmp_path):
    assert group(1).run(hanging_ranks.suspended, tmp_path) == [[]]


def test_twice_the_limit_ends_the_processes(group, tmp_path):
    with pytest.raises(CaseFailed) as failure:
        group(2).run(hanging_ranks.never_ends, tmp_path)
    text = str(failure.value)
    for rank in (0, 1):
        assert f"rank {rank} of 2: died\nexit code 1" in text
    assert "step 1 has taken longer than its limit of 2 s" in text
    assert "step 1 has taken twice its limit of 2 s on rank" in text


MODEL = [
    *("model.num_layers=4", "model.hidden_size=32", "model.num_heads=4", "model.num_kv_heads=2", "model.ffn_size=48"),
    *("model.vocab_size=272", "tokenizer=bytes", "train.sequence=32", "train.batch_tokens=256", "train.microbatch=1"),
]


@pytest.mark.parametrize(
    "axis, collective, where",
    [
        ("tensor=2", r"all_reduce of default_pg \(\S*wait_tensor\)", r"parallel/tensor.py:\d+ \w+"),
        ("pipeline=2", "_wait_batch_p2p", r"parallel/pipeline.py:\d+ train"),
    ],
)
def test_finds_the_collective_of_a_training_step(group, tmp_path, reports, axis, collective, where):
    group(2).run(hanging_ranks.misses_a_training_step, tmp_path, [*MODEL, f"parallel.{axis}"])
    head, blamed, waiting = only(reports)
    assert head.startswith("step 2 has taken longer")
    assert re.fullmatch(rf"  rank 1: in no collective, {CASE}:\d+ slow_batch", blamed)
    assert re.fullmatch(rf"  rank 0: waiting in {collective}.*, {where}", waiting)


def test_many_places_make_few_lines():
    everyone = {rank: Position("step 7", f"recv from rank {rank - 1}", f"a.py:{rank % 3} f") for rank in range(1, 64)}
    everyone |= {0: Position("step 6", None, "b.py:2 g"), 64: "no answer"}
    assert describe(everyone) == [
        "rank 0: in no collective, b.py:2 g (step 6)",
        "rank 64: no answer",
        "ranks 1-63: waiting in recv (step 7)",
    ]
    lost = {rank: Position("step 1", None, f"a.py:{rank} f") for rank in range(10)}
    assert describe(lost)[-2:] == ["rank 3: in no collective, a.py:3 f", "and 6 ranks elsewhere"]
