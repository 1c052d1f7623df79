"""`foretrain export RUN --format huggingface|int-packed --out DIR`: a run's weights in a format that other programs read.

Quantized matrices are written as the forward pass uses them.
"""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from common.errors import UserError
from parallel.environment import leave
from train.command.frame import run_command
from train.trained.layout import config_on_layout
from train.trained.rounding import check_rounding

FORMATS = ("huggingface", "int-packed")


def export(
    run: Annotated[Path, typer.Argument(help="a run's folder, such as runs/demo")],
    out: Annotated[Path, typer.Option(help="the folder to write; it must be empty or not exist")],
    format: Annotated[str, typer.Option(help=f"one of: {', '.join(FORMATS)}")] = FORMATS[0],
    quantize: Annotated[
        str | None,
        typer.Option(
            help="first round full-precision weights to nearest, bits=4 or bits=4,group=64; or cast any to format=e2m1"
        ),
    ] = None,
) -> None:
    """Write a run's newest weights, its configuration and its tokenizer as a model that other programs load."""
    if format not in FORMATS:
        raise UserError(f"--format {format}: no such format; there is {', '.join(FORMATS)}")
    if quantize is not None:
        check_rounding(config_on_layout(run, []), quantize)
    if format == "huggingface":
        from train.trained.export_huggingface import export_huggingface

        export_huggingface(run, out, quantize=quantize)
    else:
        from train.trained.export_int_packed import export_int_packed

        export_int_packed(run, out, quantize=quantize)


def main(arguments: list[str]) -> int:
    """Parse the command line and run. Returns the exit code."""
    # SIGTERM, such as a scheduler's, cleans up as Ctrl-C does.
    previous_handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run_command(export, arguments)
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
