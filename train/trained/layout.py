"""A run's configuration on another layout, to use its weights there. Imports no torch."""

import dataclasses
from pathlib import Path
from typing import Any

from common.errors import UserError
from parallel.engine.names import DEFAULT
from parallel.layout import Layout
from train.config import Config
from train.folder.reading import load_run_config


def config_on_layout(run: Path, layout: list[str]) -> Config:
    """The configuration of a run on the layout `layout` ("parallel.tensor=2", ...), in micro-batches of one sequence.

    Raises:
        UserError: `run` is not a run, or an entry of `layout` is not an axis and its size.
    """
    sizes = {}
    oversubscribe = "parallel.oversubscribe=true"
    for word in layout:
        if word == oversubscribe:
            continue
        key, _, size = word.partition("=")
        axis = key.removeprefix("parallel.")
        if not key.startswith("parallel.") or axis not in {field.name for field in dataclasses.fields(Layout)}:
            raise UserError(
                f"'{word}': here the axes of the layout can be set, such as parallel.tensor=2 or parallel.pipeline=2"
            )
        if not size.isdecimal() or int(size) < 1:
            raise UserError(f"'{word}': the size of an axis is a number from 1 up")
        sizes[axis] = int(size)
    config = load_run_config(run)
    axes: dict[str, Any] = {**dataclasses.asdict(Layout()), **sizes, "pipeline_schedule": "gpipe", "recompute": "none"}
    axes |= {"engine": DEFAULT, "zero_stage": None, "offload": "none", "fused_optimizer": False}
    axes["oversubscribe"] = oversubscribe in layout
    axes |= {"context_method": "auto", "context_partition": "zigzag"}  # the run's method may not suit the number of ranks
    parallel = dataclasses.replace(config.parallel, **axes)
    batch_tokens = config.train.sequence * parallel.layout.data_parallel
    train = dataclasses.replace(
        config.train, microbatch=1, batch_tokens=batch_tokens, batch_warmup_tokens=0, batch_warmup_start=None, compile=False
    )
    return dataclasses.replace(config, parallel=parallel, train=train)


def evaluation_config(run: Path, layout: list[str]) -> Config:
    """The configuration of a run on the layout `layout`, in micro-batches of the size that it was trained with.

    Raises as `config_on_layout` does.
    """
    config, microbatch = config_on_layout(run, layout), load_run_config(run).train.microbatch
    batch_tokens = microbatch * config.train.batch_tokens
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, microbatch=microbatch, batch_tokens=batch_tokens)
    )
