"""`foretrain evaluate RUN [--quantize bits=4] [parallel.tensor=2 ...]`: validation loss of a run's weights, on any layout."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel.environment import leave
from train.command import process_of, run_command
from train.config import Config, require_layout
from train.generate import generation_config
from train.run_directory import load_run_config

if TYPE_CHECKING:
    from parallel.mesh import World


def evaluate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="a run's folder, such as runs/demo")],
    quantize: Annotated[
        str | None, typer.Option(help="round the weights of a full-precision run to nearest first: bits=4, or bits=4,group=64")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
    layout: Annotated[
        list[str] | None, typer.Argument(help="where the model is too large for one process: parallel.tensor=2, ...")
    ] = None,
) -> None:
    """Validation loss of a run's newest weights, as many tokens as the run evaluates on."""
    config = evaluation_config(run, layout or [])
    if quantize is not None:
        check_rounding(config, quantize)
    environment = process_of(context, config)
    from parallel.mesh import connect

    with connect(environment) as world:
        found = evaluate_run(run, config, world, quantize)
        if world.rank == 0:
            print(json.dumps(found) if as_json else _words(found))


def evaluation_config(run: Path, layout: list[str]) -> Config:
    """The configuration of a run in the layout that `layout` asks for, in micro-batches as it was trained.

    Raises what `generation_config` raises.
    """
    config, microbatch = generation_config(run, layout), load_run_config(run).train.microbatch
    batch_tokens = microbatch * config.train.batch_tokens
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, microbatch=microbatch, batch_tokens=batch_tokens)
    )


def check_rounding(config: Config, text: str) -> None:
    """Refuse what weights cannot be rounded to, before there is any process group.

    Raises:
        UserError: it means nothing, or its group does not divide the run's rows.
    """
    from train.use import rounding_of

    rounded = dataclasses.replace(config, quant=rounding_of(text))
    require_layout(rounded, world_size=rounded.parallel.layout.world_size)


def evaluate_run(run: Path, config: Config, world: "World", quantize: str | None = None) -> dict[str, Any]:
    """Losses of a run's newest weights: {"loss":, "bits_per_byte":, "losses": {set:}, "errors": {task:}}, and
    what was evaluated: {"bits":, "weights": in words}. A collective.

    `config` is the run's on the layout at hand (see `evaluation_config`). The validation set is the run's own,
    tokenised again where its shards are gone.

    Raises:
        UserError: `run` has no weights, or they cannot be rounded.
    """
    from parallel.mesh import build_meshes
    from train.data.loader import ValidationLoader
    from train.data.prepare import prepare
    from train.data.shards import open_shards
    from train.use import ready_engine, weights_to_use

    weights = weights_to_use(run, config, quantize)
    if world.rank == 0:
        world.publish("shards", str(prepare(config.data, config.tokenizer, progress=False).absolute()))
    shards = open_shards(Path(world.await_value("shards")))
    engine = ready_engine(weights, world)
    validation = ValidationLoader(shards.validation, config.train.sequence, config.eval.tokens)
    ranks, rank = config.parallel.layout.data_parallel, build_meshes(config.parallel.layout, world.device).data_rank
    rows = config.train.microbatch
    starts = range(0, validation.num_samples, rows * ranks)
    loss = engine.evaluate(validation.batch(range(start + rank * rows, start + (rank + 1) * rows)) for start in starts)
    bits_per_byte = loss / math.log(2) * shards.validation.tokens / shards.validation.bytes
    return {
        "loss": loss,
        "bits_per_byte": bits_per_byte,
        "losses": {"validation": loss},
        "errors": {},
        "bits": weights.quant.bits if weights.quant is not None else None,
        "weights": str(weights),
    }


def _words(found: dict[str, Any]) -> str:
    return (
        f"validation loss {found['loss']:.4f} nats per token, {found['bits_per_byte']:.4f} bits per byte ({found['weights']})"
    )


def main(arguments: list[str], start: Callable[[int], int] | None = None) -> int:
    """Parse the command line and run. Returns the exit code.

    `start` runs this same command in so many processes, where the layout needs them, and returns its exit code.
    """
    return run_command(evaluate, arguments, start=start)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
