"""The frame of a command: its words are parsed, what goes wrong is said in a few lines, and what comes out is an exit code."""

import sys
from collections.abc import Callable

import typer

from common.errors import UserError, WorkFailed
from parallel.environment import ProcessEnvironment, die_with_launcher
from train.config import Config, require_layout


def run_command(function: Callable[..., None], arguments: list[str], *, start: Callable[..., int] | None = None) -> int:
    """Parse `arguments` for `function`, whose name is the command's, and call it. Returns the exit code.

    `start` starts processes in its place where it needs several (see `process_of`); None: it is one of them.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    try:
        app(args=arguments, prog_name=f"foretrain {function.__name__}", standalone_mode=True, obj=start)
    except (UserError, WorkFailed) as error:
        if ProcessEnvironment.read().rank == 0:
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as ending:
        return int(ending.code or 0)
    return 0


def process_of(context: typer.Context, config: Config) -> ProcessEnvironment:
    """This process among those that the layout of `config` needs. One that is alone starts them all, and ends as they do.

    Raises:
        UserError: the layout is impossible, or there are too many processes or too few.
    """
    environment = ProcessEnvironment.read()
    if environment.launched:
        die_with_launcher()
    needed = config.parallel.layout.world_size
    require_layout(config, world_size=needed)
    if needed > 1 and not environment.launched and context.obj is not None:
        raise typer.Exit(context.obj(needed))
    if needed != environment.world_size:
        name = (context.info_name or "").removeprefix("foretrain ")
        raise UserError(
            f"the layout {config.parallel.layout} needs {needed} processes, here are {environment.world_size}: use foretrain "
            f"{name}, which starts them, or torchrun --nproc-per-node {needed} -m train.{name}"
        )
    return environment
