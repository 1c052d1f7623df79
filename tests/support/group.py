"""The one multi-process helper of the tests: groups of warm processes, on the CPU with gloo or on GPUs with nccl.

`Group(2).run(function, *arguments)` calls `function(world, *arguments)` on every rank and returns the results by rank. A case
that fails shows the traceback and the output of the rank that failed; one that hangs past its time limit shows every rank's
stack.

Every case has processes of its own, forked from a server that has imported torch: a fork takes milliseconds, and nothing is
left behind. (Processes that served many cases kept the process groups of all of them alive, with three threads for each that
wake a hundred times a second.) Cases live in importable modules, not in test files: the ranks import them by name.
"""

import faulthandler
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
    """`size` processes with one thread each in one process group; with nccl every rank has a GPU of its own."""

    def __init__(self, size: int, backend: str = "gloo") -> None:
        self.size = size
        self.backend = backend

    def run(self, case: Callable[..., Any], *arguments: Any, timeout: float = 120.0) -> list[Any]:
        """Results of `case(world, *arguments)` by rank.

        Raises:
            CaseFailed: a rank raised, died, or did not answer within `timeout` seconds.
        """
        from torch.distributed import TCPStore

        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.support.preloaded"])
        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # port 0: a free one
        processes: list[Any] = []
        pipes: list[Connection] = []
        with tempfile.TemporaryDirectory(prefix="foretrain-group-") as folder:
            try:
                for rank in range(self.size):
                    ours, theirs = context.Pipe()
                    words = (rank, self.size, self.backend, theirs, folder, store.port, case, arguments)
                    process = context.Process(target=_serve, args=words, daemon=True)
                    process.start()
                    theirs.close()
                    processes.append(process)
                    pipes.append(ours)
                answers = _collect(processes, pipes, time.monotonic() + timeout)
                if all(answers.get(rank, ("missing",))[0] == "ok" for rank in range(self.size)):
                    return [answers[rank][1] for rank in range(self.size)]
                raise CaseFailed(_report(processes, answers, folder))
            finally:
                for process in processes:
                    process.kill()
                    process.join()
                for pipe in pipes:
                    pipe.close()


def _collect(processes: list[Any], pipes: list[Connection], deadline: float) -> dict[int, tuple[str, Any]]:
    """Every rank's answer. Once one has failed, the others, which may wait for it, get a short grace."""
    answers: dict[int, tuple[str, Any]] = {}
    while len(answers) < len(pipes) and time.monotonic() < deadline:
        open_pipes = [pipe for rank, pipe in enumerate(pipes) if rank not in answers]
        for pipe in wait(open_pipes, timeout=max(0.0, deadline - time.monotonic())):
            rank = pipes.index(pipe)  # type: ignore[arg-type]
            try:
                answers[rank] = pipe.recv()  # type: ignore[union-attr]
            except EOFError:
                processes[rank].join()
                answers[rank] = ("died", f"exit code {processes[rank].exitcode}")
            if answers[rank][0] != "ok":
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    return answers


def _report(processes: list[Any], answers: dict[int, tuple[str, Any]], folder: str) -> str:
    size = len(processes)
    silent = [rank for rank in range(size) if rank not in answers]
    for rank in silent:
        os.kill(processes[rank].pid, signal.SIGUSR1)  # faulthandler writes its stacks
    time.sleep(0.5 if silent else 0.0)
    parts = []
    for rank in range(size):
        kind, what = answers.get(rank, ("did not answer", ""))
        if kind != "ok":
            output = Path(folder, f"rank_{rank}.txt").read_text(errors="replace")[-6000:]
            parts.append(f"rank {rank} of {size}: {kind}\n{what}\n--- output of rank {rank} ---\n{output}")
    return "\n".join(parts)


def _serve(
    rank: int,
    size: int,
    backend: str,
    pipe: Connection,
    folder: str,
    port: int,
    case: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """What a rank does."""
    output = os.open(Path(folder, f"rank_{rank}.txt"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
    import torch
    import torch.distributed as dist

    from parallel.mesh import World

    torch.set_num_threads(1)
    store = dist.TCPStore("localhost", port, is_master=False)
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    world = World(rank, size, device, dist.PrefixStore("case", store))
    dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=rank, world_size=size)
    # A case without collectives could end on one rank, and close its connections, while another rank still connects.
    store.set(f"connected {rank}", "")
    store.wait([f"connected {other}" for other in range(size)])
    try:
        answer = ("ok", case(world, *arguments))
        dist.destroy_process_group()
    except BaseException:  # whatever ended the case is what the test shows
        answer = ("failed", traceback.format_exc())
    sys.stdout.flush()
    pipe.send(answer)
