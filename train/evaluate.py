"""`foretrain evaluate RUN [--quantize bits=4] [parallel.tensor=2 ...]`: the validation loss of a run, on any layout."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from parallel.environment import leave
from train.command.frame import process_of, run_command
from train.config import Config
from train.trained.layout import evaluation_config
from train.trained.rounding import check_rounding


def evaluate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="a run's folder, such as runs/demo")],
    quantize: Annotated[
        str | None,
        typer.Option(
            help="first round full-precision weights to nearest, bits=4 or bits=4,group=64; or cast any to format=e2m1"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
    layout: Annotated[
        list[str] | None, typer.Argument(help="for a model too large for one process: parallel.tensor=2, ...")
    ] = None,
) -> None:
    """Validation loss of a run's newest weights, over as many tokens as the run itself evaluates on."""
    config = evaluation_config(run, layout or [])
    if quantize is not None:
        check_rounding(config, quantize)
    environment = process_of(context, config)
    from parallel.mesh import connect
    from train.trained.evaluation import evaluate_run

    with connect(environment, "cpu" if config.train.device == "cpu" else "auto") as world:
        result = evaluate_run(run, config, world, quantize)
        if world.rank == 0:
            print(json.dumps(result) if as_json else _words(result))


def _words(result: dict[str, Any]) -> str:
    per_byte = f"{result['bits_per_byte']:.4f} bits per byte"
    return f"validation loss {result['loss']:.4f} nats per token, {per_byte} ({result['weights']})"


def main(arguments: list[str], start: Callable[[Config], int] | None = None) -> int:
    """Parse the command line and run. Returns the exit code.

    `start` runs this command in the processes of a layout that needs several, and returns the exit code.
    """
    return run_command(evaluate, arguments, start=start)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
