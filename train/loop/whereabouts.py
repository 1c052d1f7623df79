"""Where a rank is, from its Python stacks and torch's flight recorder."""

import json
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from common.words import ranges
from parallel.context.local import Transfers
from parallel.mesh import World

_MOST_LINES = 4  # lines about ranks in a message
_OPERATORS = ("torch._ops", "torch._library", "torch.utils._contextlib")  # modules on the stack between caller and operator
_PEERS = {"src": "from rank", "dst": "to rank", "group_src": "from the group's rank", "group_dst": "to the group's rank"}

# Functions of this project that wait for other ranks outside torch.distributed.
_WAITS = {World.await_value.__code__: "await_value", Transfers.wait.__code__: "exchange of context ranks"}


@dataclass(frozen=True)
class Position:
    """Where a rank is. `collective`: None if it waits for no other rank. `where`: the innermost line of this project's code."""

    phase: str
    collective: str | None
    where: str

    def __str__(self) -> str:
        return f"waiting in {self.collective}, {self.where}" if self.collective else f"in no collective, {self.where}"


def find_position(phase: str, thread: int, device: torch.device, packages: frozenset[str]) -> Position:
    """Where a thread of this process is. `packages`: this project's packages."""
    frames = sys._current_frames()
    stacks = [frames[thread]] if thread in frames else []
    # A backward pass on CUDA runs in threads that Python did not start, while the watched thread waits for them.
    if stacks and _module(stacks[0]) == "torch.autograd.graph":
        python_threads = {thread.ident for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}
        stacks += [frame for ident, frame in frames.items() if ident not in python_threads]
    collective = next(filter(None, map(_collective, stacks)), None)
    unfinished = _unfinished(device) if collective or device.type == "cuda" else None
    if unfinished is not None:
        collective = f"{unfinished} ({collective})" if collective and collective not in unfinished else unfinished
    where = next(filter(None, (_own_line(frame, packages) for frame in stacks)), "outside our code")
    return Position(phase, collective, where)


def describe(everyone: Mapping[int, Position | str]) -> list[str]:
    """One line for each group of ranks in the same place, first those that keep the others waiting."""
    phases = {position.phase for position in everyone.values() if isinstance(position, Position)}

    def text(position: Position | str, short: bool) -> str:
        if isinstance(position, str):
            return position
        place = f"waiting in {position.collective.split()[0]}" if short and position.collective else str(position)
        return place if len(phases) == 1 else f"{place} ({position.phase})"

    lines: list[tuple[bool, str, list[int]]] = []
    for short in (False, True):
        groups: dict[tuple[bool, str], list[int]] = {}
        for rank, position in everyone.items():
            waits = isinstance(position, Position) and position.collective is not None
            groups.setdefault((waits, text(position, short)), []).append(rank)
        lines = sorted((waits, place, ranks) for (waits, place), ranks in groups.items())
        if len(lines) <= _MOST_LINES:
            break
    shown = [f"{_ranks(ranks)}: {place}" for _, place, ranks in lines[:_MOST_LINES]]
    rest = sum(len(ranks) for _, _, ranks in lines[_MOST_LINES:])
    return [*shown, f"and {rest} ranks elsewhere"] if rest else shown


def _ranks(ranks: list[int]) -> str:
    """[0, 1, 2, 5] as `ranks 0-2, 5`."""
    return f"rank{'s' if len(ranks) > 1 else ''} {ranges(ranks)}"


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _collective(frame: FrameType | None) -> str | None:
    """The collective at the innermost frame of a stack, if any. Outer frames are not searched: they do not wait themselves."""
    while frame is not None and _module(frame).startswith(_OPERATORS):
        operator = str(getattr(frame.f_locals.get("self"), "_name", ""))
        if operator.startswith(("_c10d_functional", "c10d::")):  # compiled code calls them without torch.distributed
            return operator.split("::")[-1]
        frame = frame.f_back
    if frame is None:
        return None
    if frame.f_code in _WAITS:
        return _WAITS[frame.f_code]
    # DTensor computes too. It communicates through functional collectives, which are recognised above.
    if not _module(frame).startswith("torch.distributed.") or _module(frame).startswith("torch.distributed.tensor."):
        return None
    peers = ((word, frame.f_locals.get(key)) for key, word in _PEERS.items())
    return " ".join([frame.f_code.co_name, *(f"{word} {rank}" for word, rank in peers if isinstance(rank, int))])


def _own_line(frame: FrameType | None, packages: frozenset[str]) -> str | None:
    """The innermost line of this project's code in a stack, apart from the functions in `_WAITS`."""
    while frame is not None:
        parts = _module(frame).split(".")
        if parts[0] in packages and frame.f_code not in _WAITS:
            path = "/".join(Path(frame.f_code.co_filename).parts[-len(parts) :])
            return f"{path}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return None


def _unfinished(device: torch.device) -> str | None:
    """The oldest unfinished collective in torch's flight recorder, such as `all_reduce of mesh_shard`; None if unknown."""
    name = "_dump_nccl_trace_json" if device.type == "cuda" else "_dump_fr_trace_json"
    dump = getattr(torch._C._distributed_c10d, name, None)
    # The recorder is not a public interface, so its failures are ignored.
    with suppress(RuntimeError, TypeError, ValueError, LookupError):
        entries = json.loads(dump(includeCollectives=True, onlyActive=True))["entries"] if dump else []
        for entry in entries:
            if not entry["retired"]:
                return f"{entry['profiling_name'].partition(':')[2]} of {entry['process_group'][1]}"
    return None
