"""This process as torchrun describes it in environment variables, and what it asks of the system. Standard library only."""

import atexit
import ctypes
import os
import signal
from dataclasses import dataclass
from typing import NoReturn

from common.output import flushed

LAUNCHER = "FORETRAIN_LAUNCHER"
"""Variable that `foretrain` sets for its workers: it says itself which signal came and which process died."""
LOST = 75
"""Exit code of a worker of `foretrain` that lost another one (EX_TEMPFAIL of sysexits.h)."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
SPIN_COUNT = 1000
FLIGHT_RECORDS = 2000


def die_with_launcher() -> None:
    """Ask the kernel to kill this process when its parent dies.

    torchrun starts each worker in its own session, so killing torchrun's process group would leave the workers writing.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def end_with_parent() -> None:
    """Ask the kernel to send this process a SIGTERM when its parent dies: it saves and ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def keep_freed_memory() -> None:
    """Ask glibc not to return freed memory to the kernel, which would clear the same pages again for the next step.

    Every training step allocates the same tensors. Does nothing without glibc, or if the user has set a MALLOC_ variable.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and not any(name.startswith("MALLOC_") for name in os.environ):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def spin_briefly() -> None:
    """Let GNU OpenMP's threads spin at a barrier for tens of microseconds instead of milliseconds before they sleep.

    A thread that spins keeps a core from the thread that it waits for, if another process has the rest of the cores. Must be
    called before torch is imported. Does nothing if the user has set how threads wait. (`python -m benchmarks.neighbours`)
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))


def prepare_gpus() -> None:
    """What torch and NCCL are to do on GPUs, unless the user has said otherwise. Must be called before torch is imported.

    Memory segments that grow do not fragment. NCCL's flight recorder keeps the last collectives, so that a run that hangs can
    say where.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    if not {"TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"} & set(os.environ):
        os.environ["TORCH_FR_BUFFER_SIZE"] = str(FLIGHT_RECORDS)


def leave(code: int) -> NoReturn:
    """End this process with an exit code, without shutting down the interpreter.

    gloo's threads may still hold tensors that Python knows. Releasing one while the interpreter shuts down aborts the process
    (signal 6) after all its work is done (seen about once in fifty runs with torch 2.13).
    """
    atexit._run_exitfuncs()
    os._exit(flushed(code))


@dataclass(frozen=True)
class ProcessEnvironment:
    """This process's place among the processes of a run."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    restart: int
    """how often torchrun has restarted the processes of this node"""
    launched: bool
    """started by torchrun (or something that sets the same variables), so there is a rendezvous to join"""
    by_foretrain: bool = False
    """started by `foretrain`, which reports signals and deaths itself"""

    @staticmethod
    def read() -> "ProcessEnvironment":
        """Read the variables that torchrun sets; a process started without torchrun is rank 0 of 1."""
        variables = os.environ
        world_size = int(variables.get("WORLD_SIZE", "1"))
        return ProcessEnvironment(
            rank=int(variables.get("RANK", "0")),
            world_size=world_size,
            local_rank=int(variables.get("LOCAL_RANK", "0")),
            local_world_size=int(variables.get("LOCAL_WORLD_SIZE", "1")),
            restart=int(variables.get("TORCHELASTIC_RESTART_COUNT", "0")),
            launched="RANK" in variables and "WORLD_SIZE" in variables,
            by_foretrain=LAUNCHER in variables,
        )

    @property
    def threads(self) -> int | None:
        """CPU threads this process should use: its share of the cores it may run on; None if the user has set OMP_NUM_THREADS.

        With several processes on a node torchrun itself sets OMP_NUM_THREADS=1, which does not count as the user's choice.
        """
        chosen = os.environ.get("OMP_NUM_THREADS")
        if chosen is not None and not (self.local_world_size > 1 and chosen == "1"):
            return None
        return max(1, len(os.sched_getaffinity(0)) // self.local_world_size)
