"""The one multi-process helper of the tests: a gloo group that is started once and runs many cases.

`Group(2).run(function, *arguments)` calls `function(world, *arguments)` on every rank and returns the results by rank. A case
that fails shows the traceback and the output of the rank that failed; one that hangs past its time limit shows every rank's
stack. Either way the group is started anew for the next case.

Cases live in importable modules (not in test files), because the ranks import them by name.
"""

import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

GRACE_SECONDS = 5.0


class CaseFailed(AssertionError):
    """A case failed on some rank."""


class Group:
    """`size` processes with one thread each in one gloo process group."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def run(self, case: Callable[..., Any], *arguments: Any, timeout: float = 120.0) -> list[Any]:
        """Results of `case(world, *arguments)` by rank.

        Raises:
            CaseFailed: a rank raised, died, or did not answer within `timeout` seconds.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((case, arguments))
        answers = self._collect(time.monotonic() + timeout)
        failed = [rank for rank in range(self.size) if answers.get(rank, ("missing",))[0] != "ok"]
        if not failed:
            return [answers[rank][1] for rank in range(self.size)]
        report = self._report(answers)
        self.close()
        raise CaseFailed(report)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._processes, self._pipes, self._folder = [], [], None

    def _start(self) -> None:
        from torch.distributed import TCPStore

        self._folder = tempfile.TemporaryDirectory(prefix="foretrain-group-")
        self._store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # port 0: a free one
        context = multiprocessing.get_context("spawn")
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, self.size, theirs, self._folder.name, self._store.port), daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def _collect(self, deadline: float) -> dict[int, tuple[str, Any]]:
        """Every rank's answer. Once one has failed, the others, which may wait for it, get a short grace."""
        answers: dict[int, tuple[str, Any]] = {}
        while len(answers) < self.size and time.monotonic() < deadline:
            open_pipes = [pipe for rank, pipe in enumerate(self._pipes) if rank not in answers]
            for pipe in wait(open_pipes, timeout=max(0.0, deadline - time.monotonic())):
                rank = self._pipes.index(pipe)  # type: ignore[arg-type]
                try:
                    answers[rank] = pipe.recv()  # type: ignore[union-attr]
                except EOFError:
                    self._processes[rank].join()
                    answers[rank] = ("died", f"exit code {self._processes[rank].exitcode}")
                if answers[rank][0] != "ok":
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        return answers

    def _report(self, answers: dict[int, tuple[str, Any]]) -> str:
        silent = [rank for rank in range(self.size) if rank not in answers]
        for rank in silent:
            os.kill(self._processes[rank].pid, signal.SIGUSR1)  # faulthandler writes its stacks
        time.sleep(0.5 if silent else 0.0)
        assert self._folder is not None
        parts = []
        for rank in range(self.size):
            kind, what = answers.get(rank, ("did not answer", ""))
            if kind != "ok":
                output = Path(self._folder.name, f"rank_{rank}.txt").read_text(errors="replace")[-6000:]
                parts.append(f"rank {rank} of {self.size}: {kind}\n{what}\n--- output of rank {rank} ---\n{output}")
        return "\n".join(parts)


def _serve(rank: int, size: int, pipe: Connection, folder: str, port: int) -> None:
    """What a rank does: run cases until the pipe closes, each in a process group of its own, so that none is left behind."""
    output = os.open(Path(folder, f"rank_{rank}.txt"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
    import torch
    import torch.distributed as dist

    from parallel.environment import die_with_launcher
    from parallel.mesh import World

    die_with_launcher()
    torch.set_num_threads(1)
    store = dist.TCPStore("localhost", port, is_master=False)
    number = 0
    while True:
        try:
            case, arguments = pipe.recv()
        except EOFError:
            return
        number += 1
        world = World(rank, size, size, torch.device("cpu"), dist.PrefixStore(f"case{number}", store))
        dist.init_process_group("gloo", store=dist.PrefixStore(f"group{number}", store), rank=rank, world_size=size)
        try:
            answer = ("ok", case(world, *arguments))
            dist.destroy_process_group()
            # Cycles (FSDP's, a mesh's) keep groups alive, and every gloo group has three threads that wake a hundred times a
            # second: a few dozen cases would leave the machine to them.
            gc.collect()
        except BaseException:  # whatever ended the case is what the test shows
            answer = ("failed", traceback.format_exc())
        sys.stdout.flush()
        pipe.send(answer)
