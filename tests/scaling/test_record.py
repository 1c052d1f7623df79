"""The run record: exactly the keys that the design lists, whole files or none."""

import io
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.record import (
    EvaluationLine,
    StepLine,
    line_text,
    read_metrics,
    read_record,
    write_record,
)
from tests.support.records import EVALUATION, RECORD, STEP

# As the design has them.
RECORD_KEYS = re.findall(
    r"\w+",
    """
    schema, name, status, seed, parameters, parameters_non_embedding, tokens, flops, tokens_per_parameter, loss, bits_per_byte,
    losses, errors, bits, qat_tokens, fp_tokens, quantizer, peak_learning_rate, schedule, batch_tokens, sequence, model, layout,
    engine, precision, tokens_per_second, mfu, mfu_causal, peak_memory_bytes, device, world_size, wall_seconds, resumed_from,
    config_hash, git_commit, versions, started, ended, skipped_steps, skipped_samples, checkpoints, trunk,
    context_method, corpus, tokenizer, predicted, bit_widths, standard_errors, set_bits_per_byte""",
)
STEP_KEYS = [
    *("step", "tokens", "loss", "learning_rate", "gradient_norm", "phase", "tokens_per_second", "step_seconds", "memory_bytes")
]
EVALUATION_KEYS = ["step", "tokens", "validation", "errors", "bits_per_byte"]

finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(max_size=8)
numbers = st.integers(0, 2**63)


def test_a_record_has_exactly_the_keys_of_the_design(tmp_path):
    write_record(tmp_path, RECORD)
    assert list(json.loads((tmp_path / "run.json").read_text())) == RECORD_KEYS


def test_metrics_lines_have_exactly_the_keys_of_the_design():
    stream = io.StringIO()
    stream.write(line_text(STEP))
    stream.write(line_text(EVALUATION))
    assert [list(json.loads(line)) for line in stream.getvalue().splitlines()] == [STEP_KEYS, EVALUATION_KEYS]


@given(
    name=names,
    status=st.sampled_from(["running", "finished", "preempted", "failed"]),
    tokens=numbers,
    loss=st.none() | finite,
    losses=st.dictionaries(names, finite),
    model=st.dictionaries(names, st.none() | st.booleans() | numbers | finite | names),
    memory=st.none() | numbers,
)
def test_a_record_comes_back_equal(tmp_path_factory, name, status, tokens, loss, losses, model, memory):
    folder = tmp_path_factory.mktemp("run")
    record = replace(
        RECORD, name=name, status=status, tokens=tokens, loss=loss, losses=losses, model=model, peak_memory_bytes=memory
    )
    write_record(folder, record)
    assert read_record(folder) == record


@given(
    st.lists(
        st.builds(
            StepLine,
            step=numbers,
            tokens=numbers,
            loss=finite,
            learning_rate=finite,
            gradient_norm=finite,
            phase=names,
            tokens_per_second=finite,
            step_seconds=finite,
            memory_bytes=st.none() | numbers,
        )
        | st.builds(EvaluationLine, step=numbers, tokens=numbers, validation=st.dictionaries(names, finite))
    ),
    st.data(),
)
def test_metrics_come_back_equal_and_a_cut_last_line_is_left_out(tmp_path_factory, lines, data):
    folder = tmp_path_factory.mktemp("run")
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as stream:
        for line in lines:
            stream.write(line_text(line))
    assert list(read_metrics(folder)) == lines
    whole = (folder / "metrics.jsonl").read_bytes()
    if lines:
        last = whole[:-1].rfind(b"\n") + 1
        (folder / "metrics.jsonl").write_bytes(whole[: data.draw(st.integers(last, len(whole) - 1))])
        assert list(read_metrics(folder)) == lines[:-1]


def test_what_is_not_finite_becomes_null_wherever_it_stands(tmp_path):
    write_record(tmp_path, replace(RECORD, loss=math.nan, flops=math.inf, losses={"a": -math.inf, "b": 1.0}))
    text = (tmp_path / "run.json").read_text()
    plain = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert (plain["loss"], plain["flops"], plain["losses"]) == (None, None, {"a": None, "b": 1.0})
    stream = io.StringIO()
    stream.write(line_text(replace(STEP, loss=math.nan, gradient_norm=math.inf)))
    assert '"loss": null' in stream.getvalue()
    assert '"gradient_norm": null' in stream.getvalue()


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_record_whole_and_nothing_else(tmp_path, monkeypatch, failing):
    write_record(tmp_path, RECORD)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        write_record(tmp_path, replace(RECORD, status="finished"))
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert read_record(tmp_path) == RECORD


def _without(key: str) -> str:
    plain = asdict(RECORD)
    del plain[key]
    return json.dumps(plain)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not JSON"),
        ('{"schema": 1', "not JSON"),
        ("[]", "schema 1"),
        ("3", "schema 1"),
        (json.dumps(asdict(replace(RECORD, schema=2))), "schema 1"),
        (_without("schema"), "schema 1"),
        (_without("status"), "status"),
        (_without("model"), "model"),
        (json.dumps(asdict(RECORD) | {"status": "done"}), "'done'"),
    ],
)
def test_what_is_no_record_is_refused_and_named(tmp_path, text, message):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_record(tmp_path)
    assert str(tmp_path / "run.json") in str(caught.value)


def test_a_record_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "run.json").write_bytes(b'{"name": "\xff"}')
    with pytest.raises(ValueError, match="not JSON"):
        read_record(tmp_path)


def test_no_record_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path)


def test_keys_of_a_later_minor_version_are_passed_over(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(asdict(RECORD) | {"carbon_grams": 1}))
    assert read_record(tmp_path) == RECORD


@pytest.mark.parametrize("line", ["{", '"learning_rate"', "[1]", "3", "null", "{}", '{"learning_rate": 1}', ""])
def test_a_broken_line_in_the_middle_is_refused_with_its_number(tmp_path, line):
    good = json.dumps(asdict(STEP)) + "\n"
    (tmp_path / "metrics.jsonl").write_text(good + line + "\n" + good)
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2 "):
        list(read_metrics(tmp_path))


def test_an_evaluation_never_carries_a_learning_rate():
    assert "learning_rate" not in [field.name for field in fields(EvaluationLine)]


def test_only_the_standard_library_is_imported():
    code = "import sys; before = set(sys.modules); import scaling.record; print(*(set(sys.modules) - before))"
    printed = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True).stdout
    rooms = {name.split(".")[0] for name in printed.split()}
    assert rooms - set(sys.stdlib_module_names) == {"common", "scaling"}
