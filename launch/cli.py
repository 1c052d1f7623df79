"""The `foretrain` command, which dispatches to the packages' own commands. It imports them only when they are called."""

import importlib
import sys
from typing import NoReturn

from common.output import go_on_without_output
from parallel.environment import leave

# Subcommand -> (module and function (arguments) -> exit code, what it does).
COMMANDS = {
    "train": ("launch.local:main", "train a model (python -m train), with as many processes as the layout needs"),
    "branch": ("launch.local:branch", "a decay from the trunk of a run, as a run of its own (python -m train.branch)"),
    "schedule": ("train.schedule:main", "draw a learning-rate schedule (python -m train.schedule)"),
    "data": ("train.data.__main__:main", "prepare | inspect | verify the tokenised corpus"),
    "generate": ("launch.local:generate", "continue a prompt with a trained model (python -m train.generate)"),
    "evaluate": (
        "launch.local:evaluate",
        "validation loss of a trained model, rounded to few bits if asked (python -m train.evaluate)",
    ),
    "export": ("train.export:main", "write a trained model for other programs, or packed (python -m train.export)"),
    "convert": ("train.convert:main", "weights of another framework's checkpoint, to start from (python -m train.convert)"),
    "preselect": ("train.preselect.__main__:main", "train | filter: choose the documents that are worth training on"),
    "layout": ("parallel.plan.commands:main", "plan | check | calibrate | simulate: will it fit, how fast, which layout"),
    "launch": ("launch.commands:main", "local | slurm | ladder | status | preflight: put runs on machines, and watch them"),
    "scaling": (
        "scaling.cli:main",
        "table | fit | predict | plan | report | simulate: runs, laws, forecasts (python -m scaling)",
    ),
}


def command() -> NoReturn:
    """The console command."""
    if sys.argv[1:2] in (["train"], ["branch"]):
        go_on_without_output()
    try:
        code = main()
    except KeyboardInterrupt:  # during imports, before a command handles signals itself
        print("interrupted", file=sys.stderr)
        code = 130
    leave(code)


def main() -> int:
    """Dispatch to a subcommand. Exit codes: 0 done, 1 the work failed, 2 the request is wrong."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print("foretrain COMMAND ...      (foretrain COMMAND --help says more)\n")
        print("\n".join(f"  {name:10} {what}" for name, (_, what) in COMMANDS.items()))
        return 0 if words else 2
    name, arguments = words[0], words[1:]
    if name not in COMMANDS:
        import difflib

        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
        print(f"error: no command '{name}'{hint} (all commands: {', '.join(COMMANDS)})", file=sys.stderr)
        return 2
    module, _, function = COMMANDS[name][0].partition(":")
    return int(getattr(importlib.import_module(module), function)(arguments))
