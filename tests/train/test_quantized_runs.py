"""Quantized runs as they are typed: one trunk and several widths, what evaluation and exports make of them; what is refused."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quant.export import HEADER, WEIGHTS, read
from scaling.record import StepLine, read_metrics, read_record
from tests.support import console, small_runs
from train.checkpoint.storage import read_metadata
from train.folder.reading import load_run_config
from train.model.huggingface import places
from train.trained.checkpoint import newest_checkpoint

# 16 steps of 256 tokens. The weights move far, so that rounding them shows.
LENGTH = [
    *("train.steps=16", "schedule.peak=0.02", "schedule.warmup_tokens=512", "model.init_std=0.2", "model.qk_norm=false"),
    *("checkpoint.every_tokens=512", "checkpoint.keep_every=1"),
]
BITS = ["1", "1.58", "2", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def trunk(place) -> Path:
    return small_runs.train(place, "trunk", *LENGTH, "schedule=constant")


@pytest.fixture(scope="module")
def branches(place, trunk) -> dict[str, Path]:
    found = {}
    for bits in BITS:
        answer = console.warm("branch", str(trunk), "quant=qat", f"quant.bits={bits}", "quant.start=0.55", "quant.group=8")
        assert answer.code == 0, answer.err
        found[bits] = place / "runs" / f"trunk-qat{bits}"
    return found


def steps(run: Path) -> list[StepLine]:
    return [line for line in read_metrics(run) if isinstance(line, StepLine)]


def evaluated(run: Path, *words: str) -> dict:
    answer = console.warm("evaluate", str(run), "--json", *words)
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def test_branches_go_on_from_the_last_common_checkpoint_and_say_what_they_are(trunk, branches):
    """The quantized phase begins at step 9 of 16 (0.55 x 4,096 is 2,252 tokens: 8 whole steps are 2,048)."""
    for bits, run in branches.items():
        record = read_record(run)
        assert (record.bits, record.fp_tokens, record.qat_tokens, record.tokens) == (float(bits), 2048, 2048, 4096)
        assert record.quantizer == {"1": "elastic_binary/8", "4": "lsq/8"}.get(bits, "seq/8")
        assert record.trunk == str(trunk / "checkpoints" / "step_00000008")
        assert [line.step for line in steps(run)] == list(range(9, 17))
    assert read_record(trunk).bits is None
    assert read_record(trunk).quantizer is None


def test_a_branch_is_the_run_planned_so_from_the_start(place, branches):
    words = [*LENGTH, "quant=qat", "quant.bits=2", "quant.start=0.55", "quant.group=8", "schedule=wsd"]
    whole = steps(small_runs.train(place, "whole", *words))
    assert [line.learning_rate for line in whole[:9]] == [0.01] + 8 * [0.02]  # and all decay in the quantized phase
    assert [(line.loss, line.gradient_norm) for line in whole[8:]] == [
        (line.loss, line.gradient_norm) for line in steps(branches["2"])
    ]


def test_checkpoints_have_scales_from_the_first_quantized_step_on(place, branches):
    whole = small_runs.train(place, "whole_1", *LENGTH, "quant=qat", "quant.bits=1", "quant.start=0.5")
    for step in (2, 8, 10, 16):
        names = read_metadata(whole / "checkpoints" / f"step_{step:08}").state_dict_metadata
        scales = {name for name in names if ".scale" in name}
        assert len(scales) == (0 if step <= 8 else 16 * 4)  # the scale, two moments and a count, of 16 matrices


@pytest.mark.parametrize("bits", BITS)
def test_evaluation_gives_the_loss_of_the_record_on_any_layout(branches, bits):
    record = read_record(branches[bits])
    found = evaluated(branches[bits])
    assert found == {
        "loss": record.loss,
        "bits_per_byte": record.bits_per_byte,
        "losses": {"validation": record.loss},
        "set_bits_per_byte": {"validation": record.bits_per_byte},
        "errors": {},
        "bits": float(bits),
        "weights": f"weights of {bits} bits",
    }


def test_rounding_a_trunk_is_what_quantization_begins_with(place, trunk, branches):
    full = evaluated(trunk)["loss"]
    losses = {bits: evaluated(trunk, "--quantize", f"bits={bits},embedding_bits=8")["loss"] for bits in (8, 4, 1)}
    assert full == read_record(trunk).loss
    assert abs(losses[8] - full) < abs(losses[4] - full) < abs(losses[1] - full)
    assert evaluated(trunk, "--quantize", "bits=4,group=8")["loss"] != evaluated(trunk, "--quantize", "bits=4")["loss"]


@pytest.mark.parametrize("bits", BITS)
def test_exports_hold_what_the_forward_pass_uses(tmp_path, branches, bits):
    run = branches[bits]
    for form in ("huggingface", "int-packed"):
        answer = console.warm("export", str(run), "--format", form, "--out", str(tmp_path / form))
        assert answer.code == 0, answer.err
    packed, shape = read(tmp_path / "int-packed"), load_run_config(run).model.shape
    floats = load_file(tmp_path / "huggingface" / "model.safetensors")
    for name, there in places(shape).items():
        assert torch.equal(packed[name], floats[there.name]), name
        if len(there.shape) == 2:
            outer = name.startswith(("embedding", "head"))
            allowed = 16 if outer else {"1": 2, "1.58": 3, "2": 4, "4": 16}[bits]
            assert max(len(group.unique()) for group in floats[there.name].view(-1, 8)) <= allowed
    header = json.loads((tmp_path / "int-packed" / HEADER).read_text())
    inner = sum(math.prod(e["shape"]) for n, e in header["matrices"].items() if n.startswith("blocks"))
    per_number = {"1": 1 / 8, "1.58": 1 / 5, "2": 1 / 4, "4": 1 / 2}[bits]
    outer, scales, norms = 2 * 310 * 16, (inner + 2 * 310 * 16) // 8, 5 * 16
    size = (tmp_path / "int-packed" / WEIGHTS).stat().st_size
    data = inner * per_number + outer / 2 + 4 * (scales + norms)
    assert data <= size <= data + 8_000  # and names and places of 37 tensors


def test_rounded_weights_are_exported_as_they_are_evaluated(tmp_path, trunk):
    words = ["export", str(trunk), "--quantize", "bits=3", "--out"]
    assert console.warm(*words, str(tmp_path / "float")).code == 0
    assert console.warm(*words, str(tmp_path / "packed"), "--format", "int-packed").code == 0
    floats, packed = load_file(tmp_path / "float" / "model.safetensors"), read(tmp_path / "packed")
    name = "blocks.0.ffn.up.weight"
    found = floats[places(load_run_config(trunk).model.shape)[name].name]
    assert torch.equal(found, packed[name])
    assert max(len(row.unique()) for row in found) == 7  # -4 is never taken where the largest weight is level 3


def test_a_continued_text_is_the_quantized_model_s(trunk, branches):
    words = ["--prompt", "line", "--temperature", "0", "--tokens", "20"]
    assert console.warm("generate", str(branches["1"]), *words).out != console.warm("generate", str(trunk), *words).out


def test_what_cannot_be_used_is_refused(tmp_path, trunk, branches):
    refused = {
        ("evaluate", str(branches["2"]), "--quantize", "bits=4"): ("quantized already", "2 bits"),
        ("evaluate", str(trunk), "--quantize", "bits=5"): ("quant.bits=5", "1, 1.58, 2, 3, 4, 6, 8"),
        ("evaluate", str(trunk), "--quantize", "4"): ("type bits=4",),
        ("evaluate", str(trunk), "--quantize", "bits=4,group=5"): ("quant.group=5 does not divide",),
        ("export", str(trunk), "--quantize", "bits=4,group=5", "--out", str(tmp_path / "a")): ("quant.group=5",),
        ("export", str(trunk), "--format", "int-packed", "--out", str(tmp_path / "a")): ("full precision", "--quantize bits=4"),
        ("branch", str(trunk), "quant=qat", "--at", "3584", "quant.start=0.5"): ("--at 3584", "2048"),
        ("branch", str(trunk), "quant=qat", "quant.start=0.01", "run.name=early"): ("no checkpoint up to 0 tokens", "512"),
        ("branch", str(trunk), "schedule.decay_shape=cosine"): ("--at and --decay-tokens must be given",),
        ("branch", str(trunk), "quant.bits=4"): ("quant=qat before the keys of quant",),
        ("evaluate", str(trunk), "--quantize", "bits=4,bits=2"): ("bits is given twice",),
        ("evaluate", str(trunk), "--quantize", "bits=4,start=0.5"): ("'start=0.5' is not understood",),
        ("branch", str(trunk), "quant=qat", "--decay-tokens", "512"): ("counts from --at",),
    }
    for words, said in refused.items():
        console.warm(*words).assert_refused(*said)


def test_a_trunk_must_be_in_the_phase_that_the_run_is_in(place, trunk, branches):
    late = newest_checkpoint(branches["2"])
    base = ["train", *small_runs.words(place, *LENGTH[1:]), "train.steps=20", "run.name=other", f"run.trunk={late}"]
    console.warm(*base).assert_refused("is quantized at its 4096 tokens", "is not")
    other = ["quant=qat", "quant.bits=4", "quant.start=0.1", "quant.group=8"]
    console.warm(*base, *other).assert_refused("quantized in another way", "quant.bits: was 2.0, is 4.0")
    same = ["quant=qat", "quant.bits=2", "quant.start=0.1", "quant.group=8"]
    console.warm(*base, *same).assert_refused("quantized from 2048 tokens on, this run would be from 512", "quant.start=0.4")
    console.warm(*base, *same, "quant.activation_bits=8").assert_refused("quant.activation_bits: was null, is 8")
    full = newest_checkpoint(trunk)
    early = [word for word in base if not word.startswith("run.trunk")] + [f"run.trunk={full}", *other]
    console.warm(*early).assert_refused("is not quantized at its 4096 tokens", "its phase begins at 512:")


def test_a_decay_off_a_quantized_trunk_knows_since_when_it_is_quantized(place):
    quant = ["quant=qat", "quant.bits=4", "quant.start=0.5", "quant.group=8"]
    whole = small_runs.train(place, "quantized", *LENGTH, "schedule=constant", *quant)
    answer = console.warm("branch", str(whole), "--at", "4096", "--decay-tokens", "1024", "run.name=decayed")
    assert answer.code == 0, answer.err
    record = read_record(place / "runs" / "decayed")
    assert (record.fp_tokens, record.qat_tokens) == (2048, 3072)
    assert "4 bits over the last 3,072 tokens" in answer.out
    # The kept copies of the quantized phase count, though it begins after the first steps.
    full = small_runs.train(place, "full", *LENGTH, "schedule=constant")
    assert read_record(whole).peak_memory_bytes > read_record(full).peak_memory_bytes
