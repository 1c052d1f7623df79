"""A run of Foretrain as a job. Standard library only: the trainer and run directories both come here with plain values."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from parallel.engine.names import DEFAULT
from parallel.names import V_SHAPED
from parallel.plan.hardware import Hardware, hardware_of, load_hardware
from parallel.plan.job import Choice, Job
from parallel.plan.recipe import load_recipe
from parallel.shape import ModelShape


def job_of_run(
    *,
    shape: ModelShape,
    sequence: int,
    batch_sequences: int,
    parallel: Mapping[str, Any],
    microbatch: int,
    precision: str,
    hardware: Hardware,
    quant: Mapping[str, Any] | None = None,
) -> Job:
    """The job of a run: `parallel` has the keys of the configuration's section, `quant` those of its low-precision method."""
    own, recipe = load_recipe(DEFAULT), load_recipe(str(parallel.get("engine", DEFAULT)))
    zero = int(parallel.get("zero_stage") or recipe.zero)
    schedule, pipeline = parallel["pipeline_schedule"], parallel["pipeline"]
    choice = Choice(
        replicate=int(parallel["replicate"]),
        shard=int(parallel["shard"]),
        tensor=int(parallel["tensor"]),
        pipeline=int(parallel["pipeline"]),
        context=int(parallel["context"]),
        microbatch=microbatch,
        recompute=parallel["recompute"],
        pipeline_schedule=schedule if pipeline > 1 else "1f1b",
        virtual_stages=int(parallel["virtual_stages"]) if pipeline > 1 and schedule == "interleaved" else 1,
        zero=zero,
    )
    assert schedule not in V_SHAPED or choice.virtual_stages == 1
    return Job(
        shape=shape,
        sequence=sequence,
        batch_sequences=batch_sequences,
        hardware=hardware,
        recipe=recipe,
        choice=choice,
        precision=precision,
        # Of a machine on which only our own engine was measured, its constants are the nearest there are.
        constants=(recipe if recipe.fitted(hardware.kind) else own).constants_for(hardware.kind),
        extra={"quant": dict(quant)} if quant else {},
    )


def machine_of(device: str, hardware: str | None = None) -> Hardware:
    """The machine of a run whose record names a device; a CPU where it is no known GPU."""
    if hardware is not None:
        return load_hardware(hardware)
    return hardware_of(device) or load_hardware("cpu")


def job_of_record(config: Mapping[str, Any], device: str, hardware: str | None = None) -> Job:
    """The job of a run directory, from its `config.yaml` and the device in its record."""
    model, train = config["model"], config["train"]
    keys = ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "ffn_size", "vocab_size", "ffn")
    sizes = {key: model[key] for key in keys}
    sizes |= {key: bool(model.get(key, False)) for key in ("tie_embeddings", "qk_norm", "qkv_bias")}
    shape = ModelShape(**sizes)
    quant = config.get("quant") or {}
    return job_of_run(
        shape=shape,
        sequence=int(train["sequence"]),
        batch_sequences=int(train["batch_tokens"]) // int(train["sequence"]),
        parallel=config["parallel"],
        microbatch=int(train["microbatch"]),
        precision=str(train["precision"]),
        hardware=machine_of(device, hardware),
        quant=quant if quant.get("name", "none") != "none" else None,
    )


def with_microbatch(job: Job, microbatch: int) -> Job:
    """The job with another micro-batch."""
    return replace(job, choice=replace(job.choice, microbatch=microbatch))
