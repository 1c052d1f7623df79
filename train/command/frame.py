"""The frame of a command: parse its arguments, print errors in a few lines, return an exit code."""

import sys
from collections.abc import Callable

import typer

from common.errors import UserError, WorkFailed
from parallel.environment import ProcessEnvironment, die_with_launcher, prepare_gpus, spin_briefly
from train.config import Config, require_layout


def run_command(
    function: Callable[..., None], arguments: list[str], *, start: Callable[..., int] | None = None, name: str | None = None
) -> int:
    """Parse `arguments` for `function`, which has the command's name unless `name` is, and call it. Returns the exit code.

    `start` starts the processes of a command that needs several (see `process_of`); None: this process is one of them.
    """
    spin_briefly()
    prepare_gpus()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    try:
        app(args=arguments, prog_name=f"foretrain {name or function.__name__}", standalone_mode=True, obj=start)
    except (UserError, WorkFailed) as error:
        if ProcessEnvironment.read().rank == 0:
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as ending:
        return int(ending.code or 0)
    return 0


def process_of(context: typer.Context, config: Config) -> ProcessEnvironment:
    """This process's place among the processes that the layout of `config` needs.

    If the layout needs several and no launcher started this process, it starts them and exits with their exit code.

    Raises:
        UserError: the layout is impossible, or there are too many processes or too few.
    """
    environment = ProcessEnvironment.read()
    if environment.launched:
        die_with_launcher()
    needed = config.parallel.layout.world_size
    require_layout(config, world_size=needed)
    if needed > 1 and not environment.launched and context.obj is not None:
        raise typer.Exit(context.obj(config))
    if needed != environment.world_size:
        name = (context.info_name or "").removeprefix("foretrain ")
        raise UserError(
            f"the layout {config.parallel.layout} needs {needed} processes, there are {environment.world_size}: use foretrain "
            f"{name}, which starts them, or torchrun --nproc-per-node {needed} -m train.{name}"
        )
    return environment
