"""The frame of a command that has commands: a typer app, its errors as a few lines, its exit code."""

import sys
from collections.abc import Callable, Sequence

from common.errors import UserError, WorkFailed
from common.words import nearest


def answer(app: Callable[..., object], arguments: list[str], *, name: str, commands: Sequence[str]) -> int:
    """Run a typer app, called `name`, that has these commands.

    Returns the exit code: 0 done, 1 the work failed, 2 the request is wrong, or what the command itself returns. Without
    arguments the app shows its help, which is a wrong request.
    """
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        near = nearest(arguments[0], commands)
        hint = f"; did you mean '{near}'?" if near else ""
        print(f"error: no command '{arguments[0]}'{hint} (commands: {', '.join(commands)})", file=sys.stderr)
        return 2
    try:
        app(args=arguments or ["--help"], prog_name=name, standalone_mode=True)
    except (UserError, WorkFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as ending:
        return int(ending.code or 0) if arguments else 2
    return 0
