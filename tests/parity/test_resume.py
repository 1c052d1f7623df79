"""A run that stops and goes on, on the same layout or another one, is the run that never stopped."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support import whole_runs
from tests.support.resumed_runs import LAYOUTS, MEASURED, MODEL
from train.config import load_config


def _words(place: Path, name: str, layout: str, *run: str) -> list[str]:
    axes = [f"parallel.{axis}={size}" for axis, size in LAYOUTS[layout].items()]
    # Four sequences a step in one pass, but for the pipeline, which needs two micro-batches.
    ranks = LAYOUTS[layout].get("shard", 1) * LAYOUTS[layout].get("replicate", 1)
    passes = 2 if "pipeline" in LAYOUTS[layout] else 1
    return [f"run.dir={place}", f"run.name={name}", *MODEL, *run, *axes, f"train.microbatch={4 // ranks // passes}"]


def _carry_out(group, layout: str, runs: list[tuple[list[str], int | None]]) -> list[list[dict[str, object]]]:
    configured = [(load_config(words), steps) for words, steps in runs]
    return group(math.prod(LAYOUTS[layout].values())).run(whole_runs.stop_and_go, configured, timeout=400.0)[0]


def _copy(run: Path, to: Path) -> Path:
    shutil.copytree(run, to, ignore=shutil.ignore_patterns(".lock"))
    return to


def _assert_same(found: list[dict[str, object]], expected: list[dict[str, object]], tolerance: float) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for key in ("loss", "gradient_norm"):
        losses = [[line[key] for line in lines if key in line] for lines in (found, expected)]
        np.testing.assert_allclose(losses[0], losses[1], rtol=tolerance, atol=0)
    for line, other in zip(found, expected, strict=True):
        if "validation" in line:
            assert line["validation"] == pytest.approx(other["validation"], rel=tolerance)
        else:
            assert (line["learning_rate"], line["tokens"], line["phase"]) == (
                other["learning_rate"],
                other["tokens"],
                other["phase"],
            )


@pytest.mark.slow  # fp32 through all layouts in turn, below, is always run
def test_every_pair_of_layouts_to_1e_10(group, corpus, tmp_path):
    """Float64, stopped in the middle (some in a step, some in an evaluation), by a signal that one rank alone has got."""
    run = [*corpus, "train.precision=fp64", "train.steps=20", "schedule.warmup_tokens=512"]
    (expected,) = _carry_out(group, "single", [(_words(tmp_path, "whole", "single", *run), None)])
    assert [line["step"] for line in expected if "validation" in line] == [5, 10, 15, 20]
    for source in LAYOUTS:
        (lines,) = _carry_out(group, source, [(_words(tmp_path, source, source, *run), 7)])
        assert 0 < len([line for line in lines if "loss" in line]) < 20
    for target in LAYOUTS:
        runs = []
        for source in LAYOUTS:
            _copy(tmp_path / source, tmp_path / f"{source}_to_{target}")
            runs.append((_words(tmp_path, f"{source}_to_{target}", target, *run), None))
        for found in _carry_out(group, target, runs):
            _assert_same(found, expected, 1e-10)


@pytest.mark.slow
def test_fp32_stays_within_1e_5_for_a_hundred_steps_on_another_layout(group, corpus, tmp_path):
    """One run that moves through all layouts, and arrives where the single process does."""
    run = [*corpus, "train.precision=fp32", "train.steps=100", "schedule.warmup_tokens=2560"]
    (expected,) = _carry_out(group, "single", [(_words(tmp_path, "whole", "single", *run), None)])
    for layout in LAYOUTS:
        last = layout == "replicate2_shard2"
        (found,) = _carry_out(group, layout, [(_words(tmp_path, "moving", layout, *run), None if last else 12)])
    _assert_same(found, expected, 1e-5)


# The composition of two that are here by themselves, on four processes, takes as long as the others together.
@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=[pytest.mark.slow] if name == "tensor2_shard2" else []) for name in LAYOUTS]
)
def test_on_the_same_layout_it_is_the_same_to_the_bit(group, corpus, tmp_path, layout):
    run = [*corpus, "train.precision=fp32", "train.steps=16", "schedule.warmup_tokens=512"]
    whole, first, second = _carry_out(
        group,
        layout,
        [
            (_words(tmp_path, "whole", layout, *run), None),
            (_words(tmp_path, "parts", layout, *run), 6),
            (_words(tmp_path, "parts", layout, *run), None),
        ],
    )
    assert len(first) < len(second)
    for line, other in zip(second, whole, strict=True):
        assert {key: line.get(key) for key in MEASURED} == {key: other.get(key) for key in MEASURED}


@pytest.mark.parametrize("schedule", ["1f1b", "zbv"])
def test_tied_embeddings_on_two_stages(group, corpus, tmp_path, schedule):
    run = [
        *corpus,
        "train.precision=fp64",
        "train.steps=12",
        "schedule.warmup_tokens=512",
        "model.tie_embeddings=true",
        "train.batch_tokens=256",
    ]
    run += ["model.num_layers=4", f"parallel.pipeline_schedule={schedule}"]
    (expected,) = _carry_out(group, "single", [(_words(tmp_path, "whole", "single", *run), None)])
    _carry_out(group, "pipeline2", [(_words(tmp_path, "parts", "pipeline2", *run), 4)])
    (found,) = _carry_out(group, "pipeline2", [(_words(tmp_path, "parts", "pipeline2", *run), 8)])
    (found,) = _carry_out(group, "single", [(_words(tmp_path, "parts", "single", *run), None)])
    _assert_same(found, expected, 1e-10)
