"""Ranks with rate-limited links on one machine: every rank is a process in its own network namespace.

Namespaces, devices and limits belong to the processes and disappear with them, so there is nothing to clean up. Needs Linux,
root and iproute2.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from parallel.context.choose import Topology
from parallel.environment import die_with_launcher

Command = list[str]

_INTERFACE = "host"
"""The device that has a rank's address."""
_CLONE_NEWNET = 0x40000000  # linux/sched.h


class UnavailableError(Exception):
    """This machine cannot emulate networks; the message says why."""


def isolate() -> None:
    """Put this process, and those that it starts from now on, into a new network namespace.

    Raises:
        UnavailableError: this is not permitted, or a tool is missing.
    """
    if missing := [tool for tool in ("ip", "tc") if shutil.which(tool) is None]:
        raise UnavailableError(f"{' and '.join(missing)} (iproute2) not found")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise UnavailableError(f"no network namespace: {os.strerror(ctypes.get_errno())}")


class Network:
    """Rank processes and the network between them, in the namespace of the caller, which must have called `isolate`.

    mesh: a pair of veth devices between every two ranks. switch: one bridge, with a veth to every rank.
    """

    def __init__(self, topology: Topology, ranks: int, module: str) -> None:
        """Start `python -m module rank NUMBER`, which calls `serve`, for every rank, and connect them.

        Raises:
            UnavailableError: the kernel lacks a feature.
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
            self._run_everywhere([[["ip", "link", "set", "lo", "up"]]] * ranks)  # a rank answers once it has its namespace
            self._run_everywhere(self._mesh() if topology == "mesh" else self._switch())
        except BaseException:
            self.close()
            raise

    def ask(self, question: Any) -> list[Any]:
        """Every rank's answer to a question, by rank. Both are JSON.

        Raises:
            RuntimeError: a rank has died; its error is on standard error.
        """
        return self._exchange([{"ask": question}] * self.ranks)

    def limit(self, bits: int | None) -> None:
        """Limit every link or port to `bits` bits/s in each direction, headers included; None: no limit."""
        small = "u16 0x0000 0xff80 at 2"  # packets of less than 128 bytes: the upper bits of their length are zero
        if self.topology == "mesh":
            devices = [[f"to{other}" for other in self._others(rank)] for rank in range(self.ranks)]
            filters = [small, "u32 0 0 at 0"]
            self._run_everywhere([[line for device in some for line in _limited(device, bits, filters)] for some in devices])
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
        for device in ("switch", *(f"port{rank}" for rank in range(self.ranks))):  # left alone, the kernel takes longer
            subprocess.run(["ip", "link", "delete", device], capture_output=True, check=False)

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _others(self, rank: int) -> list[int]:
        return [other for other in range(self.ranks) if other != rank]

    def _mesh(self) -> list[list[Command]]:
        """Connect every two ranks; returns the commands for every rank. A bridge without ports has the rank's address."""
        pids = [str(process.pid) for process in self._processes]
        for one in range(self.ranks):
            for other in range(one + 1, self.ranks):
                ends = f"to{other} netns {pids[one]} type veth peer name to{one} netns {pids[other]}"
                _run([["ip", "link", "add", *ends.split()]])
        commands = []
        for rank in range(self.ranks):
            lines = [f"link add {_INTERFACE} type bridge", f"address add {_address(rank)}/32 dev {_INTERFACE}"]
            lines += [f"link set {_INTERFACE} up"]
            for other in self._others(rank):
                lines += [
                    f"link set to{other} up",
                    f"route add {_address(other)}/32 dev to{other} src {_address(rank)}",
                ]
            commands.append([["ip", *line.split()] for line in lines])
        return commands

    def _switch(self) -> list[list[Command]]:
        """Connect every rank to one bridge; returns the commands for every rank."""
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
    """Answer questions in a rank's process, until the process that started it ends."""
    die_with_launcher()
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


def _limited(device: str, bits: int | None, filters: Sequence[str]) -> list[Command]:
    """Commands that limit what a device sends, and let packets that match different filters take turns.

    In a single queue the acknowledgements of incoming data would wait for all outgoing data: both directions together would
    carry a fifth less than one, and two flows through a port a third less.
    """
    if bits is None:
        return [f"tc qdisc replace dev {device} root handle 9: pfifo".split()]
    lines = [
        f"qdisc replace dev {device} root handle 1: tbf rate {bits} burst 8kb limit 4mb",
        f"qdisc replace dev {device} parent 1:1 handle 2: htb",
    ]
    for number, match in enumerate(filters, start=1):
        lines += [
            f"class replace dev {device} parent 2: classid 2:{number} htb rate 10gbit quantum 1514",
            f"filter add dev {device} parent 2: protocol ip prio {number} u32 match {match} flowid 2:{number}",
        ]
    return [["tc", *line.split()] for line in lines]


def _address(rank: int) -> str:
    return f"10.0.0.{rank + 1}"
