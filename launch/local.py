"""`foretrain train`, `branch`, `generate` and `evaluate` on this machine; torchrun's agent starts them if they need several
processes."""

import importlib
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from common.errors import UserError
from launch.deaths import LAST_LINES, report
from launch.machine import require_room
from parallel.environment import LAUNCHER
from train.config import Config, load_config, require

RENDEZVOUS_SECONDS = 900
"""how long nodes wait for each other: containers and file systems start at their own speed"""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
WORKER = Path(__file__).with_name("worker.py")
TRAIN, BRANCH, GENERATE, EVALUATE = (
    "train.__main__",
    "train.branch",
    "train.generate",
    "train.evaluate",
)  # by name: launch imports nothing of train but its configuration


@dataclass(frozen=True)
class Place:
    """This node among those of a run. One that has several is started on each of them."""

    nodes: int = 1
    rank: int = 0
    """of this node"""
    rendezvous: str = "localhost:0"
    """HOST:PORT of the first node"""


ALONE = Place()


def main(arguments: list[str]) -> int:
    """Train. Returns the exit code of the run, from whichever process it comes."""
    started_by_torchrun = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if started_by_torchrun or any(argument.startswith("-") for argument in arguments):
        return int(importlib.import_module(TRAIN).main(arguments))
    try:
        config = load_config(arguments)
        world_size = config.parallel.layout.world_size
        require(config, world_size=world_size, overrides=arguments)
        require_room(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if world_size == 1 or config.train.dry_run:
        return int(importlib.import_module(TRAIN).main(arguments))
    return start_workers(world_size, "train", arguments)


def branch(arguments: list[str]) -> int:
    """Start a run that decays from a trunk. Returns the exit code."""
    return int(importlib.import_module(BRANCH).main(arguments, start=main))


def generate(arguments: list[str]) -> int:
    """Continue a prompt. Returns the exit code."""
    return _answer(GENERATE, arguments)


def evaluate(arguments: list[str]) -> int:
    """Measure the validation loss of a trained model. Returns the exit code."""
    return _answer(EVALUATE, arguments)


def _answer(module: str, arguments: list[str]) -> int:
    def start(config: Config) -> int:
        require_room(config, copies=1)
        return start_workers(config.parallel.layout.world_size, module, arguments)

    return int(importlib.import_module(module).main(arguments, start=start))


def start_workers(
    world_size: int, module: str, arguments: list[str], place: Place = ALONE, *, last_lines: int = LAST_LINES
) -> int:
    """Start this node's share of the processes of a run, and wait for their end. Returns the exit code.

    `module` is the command that they run. `last_lines`: how many of the rank that failed first are shown.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The agent's report of a failed worker is a page long and says nothing that the worker has not said.
    for name in logging.root.manager.loggerDict:
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    # -P: Python must not import a folder named `train` in the working directory instead of ours; see worker.py for PYTHONPATH.
    command = [sys.executable, "-P", str(WORKER), module, *arguments]
    here, alone = world_size // place.nodes, place.nodes == 1
    with tempfile.TemporaryDirectory(prefix="foretrain_") as folder:
        config = LaunchConfig(
            run_id=uuid.uuid4().hex if alone else "foretrain",
            min_nodes=place.nodes,
            max_nodes=place.nodes,
            nproc_per_node=here,
            rdzv_backend="c10d" if alone else "static",
            rdzv_endpoint=place.rendezvous,
            rdzv_configs={} if alone else {"rank": place.rank, "timeout": RENDEZVOUS_SECONDS},
            max_restarts=0,
            # STOP_SIGNALS are for the workers, see _forward_signals. These two end the agent, and the workers with it.
            signals_to_handle="SIGHUP,SIGQUIT",
            # Rank 0 keeps the terminal. What the others say is shown too, and kept for the message about one that died.
            logs_specs=DefaultLogsSpecs(folder, tee=dict.fromkeys(range(int(place.rank == 0), here), Std.ERR)),
            log_line_prefix_template="[rank ${rank}] ",
        )
        try:
            with _forward_signals(STOP_SIGNALS, SignalException) as forwarded:
                elastic_launch(config, entrypoint=command[0])(*command[1:])
        except SignalException as error:
            print(f"stopped by {signal.Signals(error.sigval).name}, with all processes of the run", file=sys.stderr)
            return 128 + error.sigval
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            asked, first = bool(forwarded), place.rank * here
            return report(codes, Path(folder), asked_to_stop=asked, first_rank=first, last_lines=last_lines)
    return 0


@contextmanager
def _forward_signals(numbers: Sequence[signal.Signals], too_early: type[Exception]) -> Iterator[list[int]]:
    """Forward these signals to the workers, which save a checkpoint and end, instead of ending this process.

    The agent would give them thirty seconds and then kill them. The handler raises `too_early` if there are no workers yet.
    Yields the signals that it has forwarded.
    """
    forwarded: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        workers = _children()
        if not workers:
            raise too_early("no worker has been started yet", signal.Signals(number))
        forwarded.append(number)
        print(f"{signal.Signals(number).name}: stopping; once more to stop at once", file=sys.stderr)
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker, number)

    handlers: list[Any] = [signal.signal(number, forward) for number in numbers]
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        yield forwarded
    finally:
        del os.environ[LAUNCHER]
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def _children() -> list[int]:
    lists = [path.read_text(encoding="ascii") for path in Path(f"/proc/{os.getpid()}/task").glob("*/children")]
    return [int(pid) for pid in " ".join(lists).split()]
