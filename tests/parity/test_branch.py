"""A decay off a trunk is the run that had been planned with it from the start; resumed anywhere, a schedule is the same."""

import math

import numpy as np
import pytest

from common.errors import UserError
from tests.support import whole_runs
from tests.support.resumed_runs import LAYOUTS, MEASURED, MODEL
from train.branch import branch_words
from train.config import load_config

# The batch grows from 64 to 128 tokens over the first 512: 12 steps hold 1,024 tokens, 20 steps 2,048.
RUN = [
    *MODEL,
    *("train.precision=fp64", "train.microbatch=1", "train.batch_warmup_start=64", "train.batch_warmup_tokens=512"),
    *("schedule.warmup_tokens=320", "checkpoint.keep_every=1", "checkpoint.every_tokens=256", "eval.every_tokens=null"),
]
RUN = [
    word
    for word in RUN
    if not word.startswith(("schedule.decay_fraction", "checkpoint.every_tokens=1280", "eval.every_tokens=640"))
]


def _train(group, layout: str, *runs: list[str], stops: int | None = None) -> list[list[dict[str, object]]]:
    axes = [f"parallel.{axis}={size}" for axis, size in LAYOUTS[layout].items()]
    world = math.prod(LAYOUTS[layout].values())
    return group(world).run(whole_runs.stop_and_go, [(load_config([*run, *axes]), stops) for run in runs], timeout=300.0)[0]


def _steps(lines: list[dict[str, object]]) -> list[dict[str, object]]:
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize("schedule", ["constant", "wsd", "power"])
def test_a_branch_equals_the_run_planned_with_its_decay(group, corpus, tmp_path, schedule):
    """On the trunk's layout and on another one. The trunk of another horizon, too: wsd decays later than its branches."""
    run = [f"run.dir={tmp_path}", *corpus, *RUN]
    trunk_words = [f"schedule={schedule}", *(["schedule.a=300"] if schedule == "power" else [])]
    shape = "schedule.decay_shape=one_minus_sqrt"
    _train(group, "single", [*run, "run.name=trunk", "train.tokens=2048", *trunk_words])
    words = branch_words(tmp_path / "trunk", 1024, 700, [shape])
    branch = load_config(words)
    assert (branch.total_tokens, branch.run.name) == (1792, "trunk-at1024-decay768")
    planned_words = ["schedule=wsd"] if schedule == "constant" else trunk_words
    fraction = f"schedule.decay_fraction={768 / 1792}"
    (planned,) = _train(group, "single", [*run, "run.name=planned", "train.tokens=1792", *planned_words, shape, fraction])
    expected = [line for line in _steps(planned) if line["tokens"] > 1024]
    assert [line["phase"] for line in expected] == ["decay"] * 6
    for layout in ("single", "tensor2") if schedule == "constant" else ("shard2",):
        (found,) = _train(group, layout, [*words, f"run.name=on_{layout}"])
        assert [line["step"] for line in _steps(found)] == [line["step"] for line in expected]
        for key in ("loss", "gradient_norm"):
            ours, theirs = ([line[key] for line in lines] for lines in (_steps(found), expected))
            np.testing.assert_allclose(ours, theirs, rtol=1e-10)
        assert [line["learning_rate"] for line in _steps(found)] == [line["learning_rate"] for line in expected]
        assert found[-1]["validation"] == pytest.approx(planned[-1]["validation"], rel=1e-10)


@pytest.mark.parametrize(
    "schedule",
    [["wsd_s", "schedule.ends=[512,1280]"], ["power", "schedule.a=300", "schedule.warmup_shape=cosine"]],
)
def test_resumed_in_any_phase_a_schedule_is_the_same_to_the_bit(group, corpus, tmp_path, schedule):
    run = [f"run.dir={tmp_path}", *corpus, *RUN, "train.tokens=2048", f"schedule={schedule[0]}", *schedule[1:]]
    (whole,) = _train(group, "single", [*run, "run.name=whole"])
    phases = [line["phase"] for line in _steps(whole)]
    assert phases[0] == "warmup"
    assert phases[-1] == "decay"
    for stops in (3, 8, 20):  # in the warmup, in the middle, to the end
        (parts,) = _train(group, "single", [*run, "run.name=parts"], stops=stops if stops < 20 else None)
    for line, other in zip(parts, whole, strict=True):
        assert {key: line.get(key) for key in MEASURED} == {key: other.get(key) for key in MEASURED}


def test_tokens_that_no_checkpoint_holds_are_refused_with_the_nearest(group, corpus, tmp_path):
    run = [
        f"run.dir={tmp_path}",
        *corpus,
        *RUN,
        "run.name=trunk",
        "train.tokens=1024",
        "schedule=wsd",
        "schedule.decay_fraction=0.3",
    ]
    _train(group, "single", run)
    trunk = tmp_path / "trunk"
    with pytest.raises(UserError, match=r"no checkpoint of .*trunk holds these tokens; the nearest are at (\d+, )?512, 640\n"):
        branch_words(trunk, 513, 100, [])
    with pytest.raises(UserError, match=r"trunk \(wsd\) begins to decay at 717 tokens and is no trunk after that"):
        branch_words(trunk, 800, 100, [])
    with pytest.raises(UserError, match=r"set keys of it, such as schedule\.decay_shape=cosine"):
        branch_words(trunk, 512, 100, ["schedule=cosine"])
    with pytest.raises(UserError, match="is not a run"):
        branch_words(tmp_path / "elsewhere", 512, 100, [])
