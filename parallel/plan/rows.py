"""Tables of measured runs: a row becomes a job, and what was measured of it.

Columns as published benchmark tables have them: source, status, hardware, model, gpus, layers, hidden, heads, kv_heads, ffn,
vocab, sequence, global_batch, tensor, pipeline, virtual_stages, context, dp, shard, zero, microbatch, recompute, precision,
tokens_per_s_per_gpu, step_time_s, tflops, memory_gib; and where there are: recipe, tied_embeddings, the four `*_gbs`.
"""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from parallel.plan.hardware import Hardware, load_hardware
from parallel.plan.job import Choice, Job, Measured
from parallel.plan.recipe import Recipe, load_recipe
from parallel.shape import ModelShape

NEEDED = ("gpus", "layers", "hidden", "heads", "ffn", "vocab", "sequence", "microbatch", "tensor", "pipeline")

# Words of a source -> recipe; the first that is part of the source applies. A column `recipe` goes before.
_RECIPES = (
    ("nanotron", "nanotron"),
    ("bigscience", "deepspeed"),
    ("narayanan", "megatron-2021"),
    ("megatron", "megatron"),
    ("primus", "megatron"),
    ("llm-foundry", "composer"),
    ("torchtitan", "fsdp"),
    ("kempner", "fsdp"),
    ("fms", "fsdp"),
    ("foretrain", "native"),
)
_HARDWARE = (
    ("gb200", "gb200"),
    ("gb300", "gb200"),
    ("b200", "b200"),
    ("h200", "h200"),
    ("h100", "h100"),
    ("a100_40", "a100-40g"),
    ("a100-40", "a100-40g"),
    ("a100", "a100-80g"),
    ("mi300x", "mi300x"),
    ("mi250x", "mi250x"),
    ("cpu", "cpu"),
)
_GATED = ("llama", "qwen", "mistral", "1b", "8b", "80b", "3b", "70b")
FABRICS = ((440.0, "multicast"), (200.0, "ring"), (0.0, "host"))
"""An all-reduce inside a node of 8 H100 measures at least that many GB/s -> the state of its links: reduced in the switch,
ring over peer access, or over host memory because peer access is off."""


@dataclass(frozen=True)
class Row:
    """A measured run."""

    name: str
    source: str
    job: Job
    ran: bool
    tokens_per_second: float | None
    memory_gib: float | None
    values: Mapping[str, str]
    fullest: bool = False
    """whether the memory is that of the fullest rank, not of the first pipeline rank"""


def read_rows(path: Path, *, recipe: str | None = None, hardware: str | None = None) -> tuple[list[Row], list[tuple[int, str]]]:
    """The rows of a CSV that describe a dense decoder whole, and (line, why) of the others.

    Raises:
        UserError: no such file, or columns are missing.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ())
        if missing := [column for column in NEEDED if column not in columns]:
            raise UserError(
                f"{path}: lacks the columns {', '.join(missing)}\nit has: {', '.join(columns) or 'none'}\n"
                f"a table of runs needs: {', '.join(NEEDED)}; and hardware, source or --hardware, --recipe"
            )
        lines = list(reader)
    rows, skipped = [], []
    for number, values in enumerate(lines, start=2):
        try:
            rows.append(row_of(values, f"line {number}", recipe=recipe, hardware=hardware))
        except _Unusable as why:
            skipped.append((number, str(why)))
    return rows, skipped


class _Unusable(Exception):
    """A row that does not say enough."""


def row_of(values: Mapping[str, str], name: str, *, recipe: str | None = None, hardware: str | None = None) -> Row:
    """One row as a job."""
    if _integer(values, "expert", 1) > 1 or "moe" in values.get("model", "").lower():
        raise _Unusable("experts: not a dense decoder")
    for column in NEEDED:
        if _number(values, column) is None:
            raise _Unusable(f"no {column}")
    source = values.get("source", "")
    machine = _machine(values, hardware)
    framework = load_recipe(recipe or values.get("recipe") or _found(_RECIPES, source) or "native")
    if (values.get("recompute") or "") not in ("", "none", "full", "selective"):
        raise _Unusable(f"recompute {values['recompute']}")
    choice = _choice(values, framework)
    if choice.gpus != _integer(values, "gpus"):
        raise _Unusable(f"its axes make {choice.gpus} devices, not {values['gpus']}")
    sequence = _integer(values, "sequence")
    batch = _integer(values, "global_batch", 0)
    if not batch:
        batch = choice.microbatch * choice.data_parallel * _integer(values, "grad_accum", 1)
    if "torchtitan" in source.lower() and choice.pipeline > 1 and not values.get("grad_accum"):
        # its tables state a data rank's whole batch; pipelines split it into single sequences
        batch, choice = choice.microbatch * choice.data_parallel, replace(choice, microbatch=1)
    measured = _measured(values)
    stated = values.get("precision", "").lower()
    precision = "fp8" if "8" in stated else "fp32" if stated == "fp32" else "bf16"
    job = Job(
        shape=shape_of(values),
        sequence=sequence,
        batch_sequences=batch,
        hardware=machine,
        recipe=framework,
        choice=choice,
        precision=precision,
        measured=measured,
        constants=framework.constants_for(machine.kind, measured.fabric),
    )
    speed = _number(values, "tokens_per_s_per_gpu")
    step = _number(values, "step_time_s")
    if speed is None and step:
        speed = batch * sequence / step / choice.gpus
    ran = values.get("status", "success") != "oom"
    return Row(name, source, job, ran, speed, _number(values, "memory_gib"), values)


def _choice(values: Mapping[str, str], recipe: Recipe) -> Choice:
    gpus, tensor, pipeline = (_integer(values, name) for name in ("gpus", "tensor", "pipeline"))
    context, virtual = _integer(values, "context", 1), _integer(values, "virtual_stages", 1)
    data = _integer(values, "dp", 0) or max(1, gpus // (tensor * pipeline * context))
    zero = _integer(values, "zero", recipe.zero)
    if zero not in recipe.states:
        raise _Unusable(f"ZeRO {zero}, which recipe {recipe.name} does not have")
    shard = (_integer(values, "shard", 0) or data) if zero else 1
    if data == 1:
        zero, shard = 0 if 0 in recipe.states else zero, 1
    if data % shard:
        raise _Unusable(f"shard {shard} does not divide dp {data}")
    return Choice(
        replicate=data // shard,
        shard=shard,
        tensor=tensor,
        pipeline=pipeline,
        context=context,
        microbatch=_integer(values, "microbatch"),
        recompute=values.get("recompute") or "none",  # type: ignore[arg-type]
        pipeline_schedule="interleaved" if virtual > 1 else "1f1b",
        virtual_stages=virtual,
        zero=zero,
        sequence_parallel=recipe.sequence_parallel,
    )


def shape_of(values: Mapping[str, str]) -> ModelShape:
    """The model of a row: gated where its name or source is a Llama's, else with two matrices."""
    hidden, heads = _integer(values, "hidden"), _integer(values, "heads")
    words = f"{values.get('model', '')} {values.get('source', '')}".lower()
    stated = values.get("feed_forward") or values.get("ffn_kind")
    gated = stated == "swiglu" or (
        not stated and (any(word in words for word in _GATED) and "mpt" not in words and "gpt" not in words)
    )
    return ModelShape(
        num_layers=_integer(values, "layers"),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=_integer(values, "kv_heads", heads),
        head_dim=hidden // heads,
        ffn_size=_integer(values, "ffn"),
        vocab_size=_integer(values, "vocab"),
        ffn="swiglu" if gated else "gelu",
        tie_embeddings=_tied(values, gated, hidden),
        qk_norm=False,
    )


def _tied(values: Mapping[str, str], gated: bool, hidden: int) -> bool:
    if stated := values.get("tied_embeddings"):
        return stated.lower() == "true"
    if "nanotron" in values.get("source", ""):
        return hidden < 3072  # its models below 4 B parameters are tied
    return not gated


def _measured(values: Mapping[str, str]) -> Measured:
    intra = _number(values, "allreduce_intra_gbs")
    fabric = next((state for least, state in FABRICS if intra >= least), None) if intra is not None else None
    gathered, scattered, reduced = (_number(values, f"{name}_gbs") for name in ("allgather", "reducescatter", "allreduce"))
    return Measured(
        all_reduce=reduced * 1e9 if reduced else None,
        all_gather=gathered * 1e9 if gathered else None,
        reduce_scatter=scattered * 1e9 if scattered else None,
        fabric=fabric,
    )


def _machine(values: Mapping[str, str], hardware: str | None) -> Hardware:
    if hardware:
        return load_hardware(hardware)
    found = _found(_HARDWARE, values.get("hardware", ""))
    if found is None:
        raise _Unusable(f"hardware {values.get('hardware', '')!r} is not known: say --hardware")
    return load_hardware(found)


def _found(table: tuple[tuple[str, str], ...], text: str) -> str | None:
    return next((name for words, name in table if words in text.lower()), None)


def _number(values: Mapping[str, str], column: str) -> float | None:
    try:
        number = float(values.get(column) or "nan")
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _integer(values: Mapping[str, str], column: str, default: int | None = None) -> int:
    number = _number(values, column)
    if number is None:
        if default is None:
            raise _Unusable(f"no {column}")
        return default
    return int(number)


def as_values(row: Mapping[str, Any]) -> dict[str, str]:
    """A row of any table as text."""
    return {key: "" if value is None else str(value) for key, value in row.items()}
