"""What ranks do under the watchdog: each way to hang, ended by the report of it."""

import ctypes
import math
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

from parallel.batch import Batch
from parallel.mesh import World, build_meshes
from train.build.engine import build_engine
from train.config import load_config
from train.loop.watchdog import ROOMS, Watchdog

LIMIT = 6.0  # a rank that other work keeps from running answers within a quarter of it


class Reports:
    """Messages, in files, so that ranks which hang in each other's place can wait for one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def say(self, message: str) -> None:
        number = len(list(self.folder.glob("report_*.txt")))
        (self.folder / "new").write_text(message)
        (self.folder / "new").rename(self.folder / f"report_{number}.txt")

    def read(self) -> list[str]:
        return [path.read_text() for path in sorted(self.folder.glob("report_*.txt"))]


def watchdog(world: World, folder: Path, limit: float | None = LIMIT) -> Watchdog:
    return Watchdog(world, folder / "logs", limit, say=Reports(folder).say, packages=ROOMS | {"tests"})


def slow_batch(folder: Path) -> None:
    """A loader that does not come back before someone has complained."""
    while not any(folder.glob("report_*.txt")):  # looked for here, so that the stack ends in this function at any moment
        time.sleep(0.05)


def one_rank_loads(world: World, folder: Path) -> None:
    with watchdog(world, folder) as watched:
        watched.phase("step 1")
        dist.all_reduce(torch.zeros(1))
        watched.phase("step 2")
        if world.rank == 1:
            slow_batch(folder)
        dist.all_reduce(torch.zeros(1))


def ranks_receive_from_each_other(world: World, folder: Path) -> None:
    """Rank 0 waits for rank 1, which waits for rank 0. A thread sends what is missing once that was said."""
    here, other = torch.zeros(1), 1 - world.rank

    def resolve() -> None:
        slow_batch(folder)
        dist.send(torch.zeros(1), dst=other)

    with watchdog(world, folder) as watched:
        watched.phase("step 1")
        thread = threading.Thread(target=resolve)
        thread.start()
        dist.recv(here, src=other)
        thread.join()


def one_rank_is_stopped(world: World, folder: Path, stopped: int) -> None:
    pids = [torch.zeros(1, dtype=torch.int64) for _ in range(world.size)]
    dist.all_gather(pids, torch.tensor([os.getpid()]))
    with watchdog(world, folder) as watched:
        watched.phase("step 1")
        if world.rank == stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        elif world.rank == world.size - 1:
            slow_batch(folder)
            os.kill(int(pids[stopped]), signal.SIGCONT)
        dist.all_reduce(torch.zeros(1))


def one_rank_keeps_the_interpreter(world: World, folder: Path) -> None:
    with watchdog(world, folder) as watched:
        watched.phase("step 1")
        if world.rank == 1:
            keep_the_interpreter(10)  # the stacks are written after one and a half limits, the run ends after two
        dist.all_reduce(torch.zeros(1))


def keep_the_interpreter(seconds: int) -> None:
    ctypes.PyDLL(None).sleep(seconds)


def one_rank_leaves(world: World, folder: Path) -> None:
    """As where an exception ends the loop of one rank."""
    with watchdog(world, folder) as watched:
        watched.phase("step 1")
        if world.rank == 0:
            dist.all_reduce(torch.zeros(1))
    if world.rank == 1:
        slow_batch(folder)
        dist.all_reduce(torch.zeros(1))


def waits_for_a_value(world: World, folder: Path) -> None:
    """Rank 0 has no limit while it prepares; the others, which have one, ask it."""
    with watchdog(world, folder) as watched:
        watched.phase("preparation", factor=math.inf if world.rank == 0 else 1.0)
        if world.rank == 0:
            slow_batch(folder)
            world.publish("prepared", "yes")
        world.await_value("prepared")


def nothing_hangs(world: World, folder: Path, limit: float | None) -> tuple[list[str], list[str]]:
    """Many short steps and a long phase that may be long: (messages, threads and files left over)."""
    before = set(threading.enumerate())
    with watchdog(world, folder, limit) as watched:
        during = len(set(threading.enumerate()) - before)
        assert during == (0 if limit is None else 2)
        for step in range(40):
            watched.phase(f"step {step}")
            time.sleep(0.1)
            dist.all_reduce(torch.zeros(1))
        watched.phase("save", factor=10.0)
        time.sleep(1.5 * (limit or 0.0))
    left = [thread.name for thread in set(threading.enumerate()) - before]
    return Reports(folder).read(), left + [str(path) for path in folder.glob(f"logs/*{world.rank}.txt")]


def suspended(world: World, folder: Path) -> list[str]:
    """As where a cluster suspends a job: the process is stopped for longer than its limit, then goes on."""
    with watchdog(world, folder, limit=2.0) as watched:
        watched.phase("step 1")
        subprocess.Popen(["sh", "-c", f"sleep 5; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.6)
        watched.phase("step 2")
    return Reports(folder).read()


def never_ends(world: World, folder: Path) -> None:
    with Watchdog(world, folder / "logs", 2.0, packages=ROOMS | {"tests"}) as watched:
        watched.phase("step 1")
        time.sleep(1000)


def misses_a_training_step(world: World, folder: Path, overrides: list[str]) -> None:
    """Rank 1 comes to a step only once that was said."""
    config = load_config(overrides)
    engine = build_engine(config, build_meshes(config.parallel.layout, world.device), world.device)
    zeros_BS = torch.zeros(config.train.microbatch, config.train.sequence, dtype=torch.int64)
    batches = [Batch(zeros_BS, zeros_BS, zeros_BS)] * config.accumulation
    with watchdog(world, folder) as watched:
        for step in (1, 2):
            watched.phase(f"step {step}", factor=10.0 if step == 1 else 1.0)
            if step == 2 and world.rank == 1:
                slow_batch(folder)
            engine.train_step(batches, learning_rate=1e-3, tokens=config.train.batch_tokens)
