"""`foretrain generate RUN --prompt TEXT [parallel.tensor=2 ...]`: continue a prompt with a trained model, on any layout."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from parallel.environment import leave
from train.command.frame import process_of, run_command
from train.config import Config
from train.trained.layout import config_on_layout


def generate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="a finished run's folder, such as runs/demo")],
    prompt: Annotated[str, typer.Option(help="the text to continue")],
    tokens: Annotated[int, typer.Option(min=1, help="how many tokens to add at most")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="sample among the k likeliest tokens only; 0: among all")] = 50,
    seed: Annotated[int, typer.Option(help="seed of the sampling")] = 0,
    layout: Annotated[
        list[str] | None, typer.Argument(help="for a model too large for one process: parallel.tensor=2, ...")
    ] = None,
) -> None:
    """Continue a prompt. Print the prompt and its continuation."""
    config = config_on_layout(run, layout or [])
    environment = process_of(context, config)
    from parallel.mesh import connect
    from train.trained.generation import continue_prompt

    with connect(environment, "cpu" if config.train.device == "cpu" else "auto") as world:
        text = continue_prompt(run, config, prompt, world, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed)
        if world.rank == 0:
            print(text)


def main(arguments: list[str], start: Callable[[Config], int] | None = None) -> int:
    """Parse the command line and run. Returns the exit code.

    `start` runs this command in the processes of a layout that needs several, and returns the exit code.
    """
    return run_command(generate, arguments, start=start)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
