"""The command `train`, also for other commands that start a run."""

import os
import sys
from pathlib import Path

from common.errors import UserError, WorkFailed
from parallel.environment import ProcessEnvironment, die_with_launcher, prepare_gpus, spin_briefly
from train.config import Config, load_config_and_reasons, require
from train.config.help import answer_without_running
from train.loop.stop import StopRequest


def main(arguments: list[str]) -> int:
    """Train, or answer `--help` or `--cfg job`. Returns the exit code."""
    environment = ProcessEnvironment.read()
    if environment.launched:
        die_with_launcher()
    spin_briefly()
    prepare_gpus()
    with StopRequest().listening(verbose=environment.rank == 0 and not environment.by_foretrain) as stop:
        return _answer_or_run(arguments, environment, stop)


def _warn_of_crowd(config: Config, processes: int) -> None:
    """Say that torchrun has started more processes than this machine has cores, unless it is wanted or there are GPUs."""
    cores = len(os.sched_getaffinity(0))
    if processes > cores and not config.parallel.oversubscribe and not Path("/proc/driver/nvidia/gpus").exists():
        print(
            f"warning: {processes:,} processes on {cores:,} core{'s' * (cores != 1)} of this machine wait for each other: "
            "start fewer, or type parallel.oversubscribe=true, which says that it is meant",
            file=sys.stderr,
        )


def _answer_or_run(arguments: list[str], environment: ProcessEnvironment, stop: StopRequest) -> int:
    try:
        if answer_without_running(arguments):
            return 0
        config, reasons = load_config_and_reasons(arguments)
        world_size = config.parallel.layout.world_size if config.train.dry_run else environment.world_size
        require(config, world_size=world_size, overrides=arguments)
        if environment.launched and not environment.by_foretrain and environment.local_rank == 0:
            _warn_of_crowd(config, environment.local_world_size)
        if environment.rank == 0:
            print("".join(f"{reason}\n" for reason in reasons), end="", file=sys.stderr)
        if config.train.dry_run:
            from train.build.dry_run import show

            show(config)
            return 0
        # torch is imported only now: everything above answers in a fraction of a second.
        from parallel.mesh import connect
        from train.loop.run import run

        with connect(environment, config.train.device) as world:
            return run(config, world, stop)
    except (UserError, WorkFailed) as error:
        if environment.rank == 0:
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
