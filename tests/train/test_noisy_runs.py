"""Runs with noise as they are typed: their record and picture, what a cast makes of them and of others, what is refused."""

import json
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file

from common.bits import FLOAT_FORMATS
from quant.floats import cast
from scaling.record import read_record
from tests.support import console, small_runs
from train.model.huggingface import places
from train.trained.checkpoint import load_weights, newest_checkpoint

LENGTH = ["train.steps=8", "schedule=constant", "schedule.peak=0.02", "schedule.warmup_tokens=256", "model.init_std=0.2"]
NOISE = ["quant.block=8", "quant.bits_learning_rate=10", "quant.penalty=0.1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def noisy(place) -> Path:
    return small_runs.train(place, "noisy", *LENGTH, "quant=gaussian", *NOISE)


@pytest.fixture(scope="module")
def full(place) -> Path:
    return small_runs.train(place, "full", *LENGTH, "checkpoint.every_tokens=256", "checkpoint.keep_every=1")


@pytest.fixture(scope="module")
def quantized(place) -> Path:
    return small_runs.train(place, "quantized", *LENGTH, "quant=qat", "quant.start=0.5", "quant.bits=4", "quant.group=8")


def evaluated(run: Path, *words: str) -> dict:
    answer = console.warm("evaluate", str(run), "--json", *words)
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def test_the_record_has_the_bit_widths_of_every_matrix(noisy, full):
    record = read_record(noisy)
    assert record.quantizer == "rounded_normal/8x8"
    assert (record.bits, record.fp_tokens, record.qat_tokens) == (None, 2048, 0)  # the run's weights are in full precision
    blocks = {name: sum(histogram.values()) for name, histogram in record.bit_widths.items()}
    square, wide = 4, 6
    per_layer = {
        "attention.query": square,
        "attention.key": square,
        "attention.value": square,
        "attention.output": square,
    } | dict.fromkeys(("ffn.gate", "ffn.up", "ffn.down"), wide)
    assert blocks == {f"blocks.{layer}.{name}.weight": n for layer in (0, 1) for name, n in per_layer.items()}
    widths = {float(width) for histogram in record.bit_widths.values() for width in histogram}
    assert 4.0 <= min(widths) < 5.5
    assert max(widths) <= 6.0
    height, width = imread(noisy / "bit_widths.png").shape[:2]
    assert (height > 200, width) == (True, 1500)
    assert read_record(full).bit_widths == {}
    assert not (full / "bit_widths.png").exists()


def test_the_table_at_the_end_sums_them_up(place):
    words = small_runs.words(place, *LENGTH, "quant=diffq", *NOISE)
    answer = console.warm("train", "run.name=uniform", *words)
    assert answer.code == 0, answer.err
    assert "on average" in answer.out
    assert "bit_widths.png" in answer.out
    assert "with noise from 0 tokens on" in answer.err
    assert read_record(place / "runs" / "uniform").quantizer == "uniform/8x8"


def test_evaluation_uses_the_weights_without_noise(noisy):
    found = evaluated(noisy)
    assert found["loss"] == read_record(noisy).loss
    assert found["bits"] is None
    assert found["weights"] == "weights in full precision, trained with quant=gaussian from 0 tokens on"


@pytest.mark.parametrize("kind", ["noisy", "full", "quantized"])
def test_a_cast_comes_last_and_is_what_is_exported(kind, request, tmp_path):
    run = request.getfixturevalue(kind)
    plain, losses = evaluated(run), {}
    for name, form in FLOAT_FORMATS.items():
        found = evaluated(run, "--quantize", f"format={name},block=8")
        losses[name] = found["loss"]
        assert found["bits"] == form.bits
        assert found["weights"] == f"{plain['weights']}, cast to {name} in blocks of 8"
    assert abs(losses["e4m3"] - plain["loss"]) < abs(losses["e2m1"] - plain["loss"]) or kind == "quantized"
    assert len({plain["loss"], *losses.values()}) > 3
    exports = {}
    for name, words in (("plain", []), ("cast", ["--quantize", "format=e3m2,block=8"])):
        answer = console.warm("export", str(run), *words, "--out", str(tmp_path / name))
        assert answer.code == 0, answer.err
        exports[name] = load_file(tmp_path / name / "model.safetensors")
    from train.folder.reading import load_run_config

    for name, there in places(load_run_config(run).model.shape).items():
        used, casted = exports["plain"][there.name], exports["cast"][there.name]
        inner = name.startswith("blocks.") and len(there.shape) == 2
        assert torch.equal(casted, cast(used, FLOAT_FORMATS["e3m2"], 8) if inner else used), name


def test_a_cast_of_the_embedding_and_the_head_when_asked(full):
    some, every = (evaluated(full, "--quantize", f"format=e2m1,block=8{more}")["loss"] for more in ("", ",outer=true"))
    assert some != every


@pytest.mark.parametrize("layout", [["parallel.tensor=2"], ["parallel.shard=2"], ["parallel.pipeline=2"]])
def test_a_cast_is_the_same_on_every_layout(noisy, layout):
    words = ["--quantize", "format=e2m1,block=8"]
    assert evaluated(noisy, *words, *layout)["loss"] == pytest.approx(evaluated(noisy, *words)["loss"], rel=1e-6)


def test_before_its_phase_a_run_has_the_checkpoints_of_one_without_noise(place, full):
    late = small_runs.train(
        place,
        "late",
        *LENGTH,
        "quant=gaussian",
        *NOISE,
        "quant.start=0.5",
        "checkpoint.every_tokens=256",
        "checkpoint.keep_every=1",
    )
    from train.checkpoint.storage import read_metadata

    def names(run: Path, step: int) -> set[str]:
        return set(read_metadata(run / "checkpoints" / f"step_{step:08}").state_dict_metadata)

    assert names(late, 4) == names(full, 4)
    assert {name for name in names(late, 5) - names(full, 5) if not name.endswith(".bits") and ".bits." not in name} == set()
    assert len(names(late, 5) - names(full, 5)) == 14 * 4
    assert set(load_weights(late)) - set(load_weights(full)) == {f"{name[:-6]}bits" for name in read_record(late).bit_widths}


def test_what_cannot_be_is_refused(place, tmp_path, noisy, full, quantized):
    base = ["train", *small_runs.words(place, *LENGTH)]
    refused = {
        ("quant=gaussian", "quant.block=32"): ("quant.block=32 does not divide model.hidden_size = 16", "quant.block=4 or 8"),
        ("quant=gaussian", "quant.block=8", "parallel.tensor=2"): (
            "does not divide model.ffn_size / parallel.tensor=2 = 12",
            "type quant.block=4",
        ),
        ("quant=gaussian", "quant.block=12"): ("quant.block=12",),
        ("quant=diffq", "quant.block=8", "quant.outer=true"): ("model.vocab_size = 310", "a multiple of 4"),
        ("quant=gaussian", "quant.block=8", "quant.b_target=7"): ("quant.b_target=7 is above quant.b_init=6",),
        ("quant=gaussian", "quant.block=8", "quant.b_target=10", "quant.b_init=12", "train.precision=bf16"): (
            "quant.b_target=10 with train.precision=bf16",
            "quant.b_target=9 or less, or train.precision=fp32",
        ),
        ("quant=gaussian", "quant.block=8", "quant.start=auto"): ("the law of quantization-aware training",),
        ("quant=gaussian", "quant=qat"): ("quant=gaussian and quant=qat", "one method"),
        ("quant=gaussian", "quant.bits=4"): ("'quant.bits' is a key of quant=qat",),
        ("quant=gauss",): ("no such option", "gaussian"),
    }
    for words, said in refused.items():
        console.warm(*base, "run.name=refused", *words).assert_refused(*said)
    one = ["--out", str(tmp_path / "out")]
    commands = {
        ("evaluate", str(full), "--quantize", "format=e5m2"): ("format=e5m2: no such format", "e4m3 or e3m2 or e2m3 or e2m1"),
        ("evaluate", str(full), "--quantize", "format=e2m1,block=32"): ("block=32 does not divide", "type block=8 or 4 or 2"),
        ("evaluate", str(full), "--quantize", "format=e2m1,block=no"): ("block=no",),
        ("evaluate", str(full), "--quantize", "format=e2m1,bits=4"): ("'bits=4' is not understood",),
        ("evaluate", str(full), "--quantize", "format=e2m1,outer=1"): ("outer=1: type true or false",),
        ("evaluate", str(full), "--quantize", "e2m1"): ("'e2m1' is not understood", "format=e4m3"),
        ("export", str(full), "--quantize", "format=e9m9", *one): ("no such format",),
        ("export", str(full), "--quantize", "format=e2m1,block=8", "--format", "int-packed", *one): ("holds integers",),
        ("branch", str(full), "quant=gaussian", "quant.block=8"): ("no checkpoint up to 0 tokens", "quant.start"),
    }
    for words, said in commands.items():
        console.warm(*words).assert_refused(*said)
    longer = [*base, "train.steps=12", "run.name=refused", "quant=gaussian", "quant.block=8"]
    console.warm(*longer, f"run.trunk={newest_checkpoint(quantized)}").assert_refused("in another way", 'quant.name: was "qat"')
    console.warm(*longer, f"run.trunk={newest_checkpoint(full)}").assert_refused("is not quantized at its 2048 tokens")
    assert not (place / "runs" / "refused").exists()
    assert not (tmp_path / "out").exists()
