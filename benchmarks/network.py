"""Ranks with rate-limited links on one machine: every rank is a process in a network namespace of its own.

Namespaces, devices and limits belong to processes and end with them, whatever ends them: nothing is left to clean up.
Needs Linux, root, and iproute2.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal

Topology = Literal["mesh", "switch"]
Command = list[str]

_INTERFACE = "host"
"""What has a rank's address."""
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class UnavailableError(Exception):
    """This machine does not let us make networks; the message says why."""


def isolate() -> None:
    """Put this process, and those it starts from now on, into a network namespace of its own.

    Raises:
        UnavailableError: not permitted, or a tool is missing.
    """
    if missing := [tool for tool in ("ip", "tc") if shutil.which(tool) is None]:
        raise UnavailableError(f"{' and '.join(missing)} (iproute2) not found")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise UnavailableError(f"no network namespace: {os.strerror(ctypes.get_errno())}")


class Network:
    """Rank processes and what is between them, in the namespace of the caller, which has isolated itself.

    mesh: a pair of veth for every two ranks. switch: one bridge, and a veth from it to every rank.
    """

    def __init__(self, topology: Topology, ranks: int, module: str) -> None:
        """Start `python -m module rank NUMBER`, which calls `serve`, for every rank, and connect them.

        Raises:
            UnavailableError: the kernel lacks something.
        """
        self.topology, self.ranks = topology, ranks
        environment = os.environ | {"GLOO_SOCKET_IFNAME": _INTERFACE, "OMP_NUM_THREADS": "1"}
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", module, "rank", str(rank)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for rank in range(ranks)
        ]
        try:
            self._run_everywhere([[["ip", "link", "set", "lo", "up"]]] * ranks)  # answered once it has its namespace
            self._run_everywhere(self._mesh() if topology == "mesh" else self._switch())
        except BaseException:
            self.close()
            raise

    def ask(self, question: Any) -> list[Any]:
        """Every rank's answer to a question, by rank. Both are JSON.

        Raises:
            RuntimeError: a rank has died; its own words are on standard error.
        """
        return self._exchange([{"ask": question}] * self.ranks)

    def limit(self, bits: int | None) -> None:
        """Let every link or port carry so many bits/s in each direction, headers included; None: as many as it can."""
        small = "u16 0x0000 0xff80 at 2"  # packets of less than 128 bytes: the upper bits of their length are zero
        if self.topology == "mesh":
            devices = [[f"to{other}" for other in self._others(rank)] for rank in range(self.ranks)]
            turns = [small, "u32 0 0 at 0"]
            self._run_everywhere([[line for device in some for line in _limited(device, bits, turns)] for some in devices])
            return
        peers = [_address(rank) for rank in range(self.ranks)]
        for rank in range(self.ranks):
            _run(_limited(f"port{rank}", bits, [small, *(f"ip src {peer}/32" for peer in peers)]))
        self._run_everywhere([_limited(_INTERFACE, bits, [small, *(f"ip dst {peer}/32" for peer in peers)])] * self.ranks)

    def close(self) -> None:
        """End the ranks, and with them their networks."""
        for process in self._processes:
            process.kill()
            process.wait()
        for device in ("switch", *(f"port{rank}" for rank in range(self.ranks))):  # the kernel takes its time otherwise
            subprocess.run(["ip", "link", "delete", device], capture_output=True, check=False)

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _others(self, rank: int) -> list[int]:
        return [other for other in range(self.ranks) if other != rank]

    def _mesh(self) -> list[list[Command]]:
        """Connect every two ranks; returns what every rank has to do. A bridge without ports has its address."""
        pids = [str(process.pid) for process in self._processes]
        for one in range(self.ranks):
            for other in range(one + 1, self.ranks):
                ends = f"to{other} netns {pids[one]} type veth peer name to{one} netns {pids[other]}"
                _run([["ip", "link", "add", *ends.split()]])
        found = []
        for rank in range(self.ranks):
            lines = [f"link add {_INTERFACE} type bridge", f"address add {_address(rank)}/32 dev {_INTERFACE}"]
            lines += [f"link set {_INTERFACE} up"]
            for other in self._others(rank):
                lines += [
                    f"link set to{other} up",
                    f"route add {_address(other)}/32 dev to{other} src {_address(rank)}",
                ]
            found.append([["ip", *line.split()] for line in lines])
        return found

    def _switch(self) -> list[list[Command]]:
        """Connect every rank to one bridge; returns what every rank has to do."""
        lines = ["link add switch type bridge", "link set switch up"]
        for rank, process in enumerate(self._processes):
            lines += [
                f"link add port{rank} type veth peer name {_INTERFACE} netns {process.pid}",
                f"link set port{rank} master switch up",
            ]
        _run([["ip", *line.split()] for line in lines])
        return [
            [["ip", *f"address add {_address(rank)}/24 dev {_INTERFACE}".split()], ["ip", "link", "set", _INTERFACE, "up"]]
            for rank in range(self.ranks)
        ]

    def _run_everywhere(self, commands: Sequence[list[Command]]) -> None:
        for error in self._exchange([{"run": some} for some in commands]):
            if error is not None:
                raise UnavailableError(error)

    def _exchange(self, messages: Sequence[Any]) -> list[Any]:
        for process, message in zip(self._processes, messages, strict=True):
            assert process.stdin is not None
            print(json.dumps(message), file=process.stdin, flush=True)
        answers = []
        for rank, process in enumerate(self._processes):
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"rank {rank} has died with {process.wait()}")
            answers.append(json.loads(line))
        return answers


def serve(answer: Callable[[Any], Any]) -> None:
    """What a rank's process does: answer questions, until the process that started it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    isolate()
    for line in sys.stdin:
        message = json.loads(line)
        if "run" in message:
            result = None
            try:
                _run(message["run"])
            except UnavailableError as error:
                result = str(error)
        else:
            result = answer(message["ask"])
        print(json.dumps(result), flush=True)


def _run(commands: Sequence[Command]) -> None:
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnavailableError(f"{' '.join(command)}: {done.stderr.strip()}")


def _limited(device: str, bits: int | None, turns: Sequence[str]) -> list[Command]:
    """Limit what leaves by a device, and let packets that match different filters take turns.

    In one queue the acknowledgements of what comes in would wait behind all that goes out, for longer the slower the link is:
    both directions together would carry a fifth less than one, and two flows through a port a third less.
    """
    if bits is None:
        return [f"tc qdisc replace dev {device} root handle 9: pfifo".split()]
    lines = [
        f"qdisc replace dev {device} root handle 1: tbf rate {bits} burst 8kb limit 4mb",
        f"qdisc replace dev {device} parent 1:1 handle 2: htb",
    ]
    for number, match in enumerate(turns, start=1):
        lines += [
            f"class replace dev {device} parent 2: classid 2:{number} htb rate 10gbit quantum 1514",
            f"filter add dev {device} parent 2: protocol ip prio {number} u32 match {match} flowid 2:{number}",
        ]
    return [["tc", *line.split()] for line in lines]


def _address(rank: int) -> str:
    return f"10.0.0.{rank + 1}"
