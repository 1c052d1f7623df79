"""A watchdog for the training loop. If a phase exceeds its limit, every rank writes its stacks to a file, and one message says
which ranks wait in which collective. The ranks that wait in none keep the others waiting.

    with Watchdog(world, run / "logs", limit_seconds=600) as watchdog:
        for step in range(1, steps + 1):
            watchdog.phase(f"step {step}", factor=10 if step == 1 else 1)  # the first one compiles
            ...

Each rank has two threads. The clock uses only its own process, so nothing can block it. The messenger talks to the other ranks
through the store, and may block if the store's host is dead. Code that never releases the interpreter lock stops both: then the
C thread of `faulthandler` writes the stacks, a dump that the clock otherwise keeps postponing.

The Python stack shows where a rank is if a gloo collective blocks it. An NCCL collective blocks the device, and the host only
where it next waits for the device. So on CUDA, torch's flight recorder tells which collectives are unfinished. The CUDA path
has never been run.
"""

import faulthandler
import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Self

from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from parallel.mesh import World
from train.loop.whereabouts import Position, describe, find_position

ROOMS = frozenset({"train", "parallel", "quant", "schedulers", "scaling", "launch"})
_NO_ANSWER = "no answer (dead, stopped, or in code that lets no other thread run)"
_LEFT = "has left the loop, finished or failed"


def end_process() -> None:
    """End this process at once with exit code 1. The main thread hangs, so it cannot exit normally."""
    os._exit(1)


def to_standard_error(message: str) -> None:
    """Print a message on standard error."""
    print(message, file=sys.stderr, flush=True)


class Watchdog:
    """Watches the phases of the thread that enters it. Without a limit it does nothing.

    All ranks must enter it, and announce the same phases. Time in which the process is suspended does not count.
    """

    def __init__(
        self,
        world: World,
        logs: Path,
        limit_seconds: float | None,
        *,
        say: Callable[[str], None] = to_standard_error,
        on_expired: Callable[[], None] = end_process,
        packages: Iterable[str] = ROOMS,
    ) -> None:
        """On threads of the watchdog: `say` is called with the message on one rank, `on_expired` on every rank when a phase
        takes twice its limit. `packages`: the message shows the innermost line of their code."""
        self._world, self._logs, self._limit = world, logs, limit_seconds or math.inf
        self._say, self._on_expired, self._packages = say, on_expired, frozenset(packages)
        self._path = logs / f"stacks_rank_{world.rank:04d}.txt"
        self._tick = min(self._limit / 10, 5.0)
        self._grace = min(self._limit / 4, 10.0)
        # One thread writes each of these. Phases are compared by identity: every call of `phase` makes a new tuple.
        self._phase: tuple[str, float] | None = None
        self._overdue: tuple[str, float] | None = None
        self._alarmed: tuple[str, float] | None = None
        self._stacks_written: tuple[str, float] | None = ("nothing yet", 0.0)
        self._reporter = False
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def phase(self, name: str, factor: float = 1.0) -> None:
        """Announce what the loop does next, and restart the clock. The phase may take `factor` limits; math.inf: any time."""
        self._phase = (name, factor)

    def __enter__(self) -> Self:
        if self._limit == math.inf:
            return self
        self._watched_thread = threading.get_ident()
        self._logs.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a", encoding="utf-8")
        world = self._world
        # The n-th watchdogs of all ranks use the same prefix.
        prefix = f"watchdog/{world.store.add(f'watchdogs/{world.rank}', 1)}"
        self._mailbox = PrefixStore(prefix, world.store)
        # A separate client, because the main thread locks its own client while it waits in the store.
        self._store = PrefixStore(prefix, world.store.clone())  # type: ignore[attr-defined]
        self._start("clock", self._watch)
        self._start("messenger", self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        self._phase = None
        if self._limit == math.inf:
            return
        self._stop.set()
        with suppress(RuntimeError):  # the store may be gone; a set does not wait for it
            self._mailbox.set(f"left/{self._world.rank}", "")
        for thread in self._threads:
            thread.join(timeout=5.0)  # the messenger may be blocked by a store whose host is stopped
        faulthandler.cancel_dump_traceback_later()
        if not any(thread.is_alive() for thread in self._threads):
            self._file.close()
        with suppress(OSError):
            if self._path.stat().st_size == 0:
                self._path.unlink()

    def _start(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=f"watchdog-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _watch(self) -> None:
        """The clock: measures phases, and writes stacks or ends the process when they exceed their limits."""
        watched, seconds, expired = None, 0.0, False
        last = time.monotonic()
        self._postpone_dump(1.5 * self._limit)
        while not self._stop.wait(self._tick):
            now = time.monotonic()
            seconds += min(now - last, 2 * self._tick)
            last = now
            if watched is not self._phase:
                watched, seconds, expired = self._phase, 0.0, False
            limit = self._limit * (watched[1] if watched else 1.0)
            self._postpone_dump(max(0.0, limit - seconds) + limit / 2)
            if watched is not None and seconds >= limit:
                self._overdue = watched
                self._write_stacks()
            if watched is not None and seconds >= 2 * limit and not expired:
                expired = True
                self._expire(limit)

    def _postpone_dump(self, seconds: float) -> None:
        """Let `faulthandler` write the stacks unless this is called again within `seconds`."""
        if seconds == math.inf:
            faulthandler.cancel_dump_traceback_later()
        else:
            faulthandler.dump_traceback_later(seconds, file=self._file)

    def _expire(self, limit: float) -> None:
        # One rank has reported for all; if it could not, every rank reports for itself.
        try:
            if self._reporter or self._alarmed is not self._phase:
                position = self._position()
                self._say(
                    f"{position.phase} has taken twice its limit of {limit:g} s on rank {self._world.rank} ({position}); "
                    f"stacks: {self._path}"
                )
        finally:  # a message that cannot be written must not keep the process
            self._on_expired()

    def _listen(self) -> None:
        """The messenger: raises an alarm if this rank is overdue, and answers every rank's alarm."""
        number = 0
        with suppress(RuntimeError):  # the store's host has exited: the clock continues alone
            while not self._stop.wait(self._tick):
                phase = self._phase
                if phase is not None and phase is self._overdue and phase is not self._alarmed:
                    limit = self._limit * phase[1]
                    self._store.set(f"{number}/alarm", f"{phase[0]} has taken longer than its limit of {limit:g} s")
                if self._store.check([f"{number}/alarm"]):
                    self._alarmed = phase
                    self._store.set(f"{number}/{self._world.rank}", json.dumps(asdict(self._position())))
                    self._write_stacks()
                    self._reporter = self._is_reporter(number)
                    if self._reporter:
                        self._report(number)
                    number += 1

    def _is_reporter(self, number: int) -> bool:
        """Whether this rank reports: rank 0 does; if it does not claim the report in time, the first rank that does."""
        key, deadline = f"{number}/reporter", time.monotonic() + self._grace
        while self._world.rank != 0 and time.monotonic() < deadline:
            if self._stop.wait(self._tick) or self._store.check([key]):
                return False
        return self._store.add(key, 1) == 1

    def _report(self, number: int) -> None:
        answers: dict[int, Position | str] = {}
        deadline = time.monotonic() + self._grace
        while True:
            for rank in range(self._world.size):
                if rank not in answers and self._store.check([f"{number}/{rank}"]):
                    answers[rank] = Position(**json.loads(self._store.get(f"{number}/{rank}")))
                elif rank not in answers and self._store.check([f"left/{rank}"]):
                    answers[rank] = _LEFT
            if len(answers) == self._world.size or time.monotonic() > deadline:
                break
            if self._stop.wait(self._tick):
                return
        everyone = {rank: answers.get(rank, _NO_ANSWER) for rank in range(self._world.size)}
        alarm = bytes(self._store.get(f"{number}/alarm")).decode()
        self._say("\n  ".join([f"{alarm}; stacks: {self._logs}/stacks_rank_*.txt", *describe(everyone)]))

    def _position(self) -> Position:
        phase = self._phase
        return find_position(phase[0] if phase else "no phase", self._watched_thread, self._world.device, self._packages)

    def _write_stacks(self) -> None:
        """Write the stacks once per phase, on a new thread, because the file system may hang."""
        if self._phase is not self._stacks_written:
            self._stacks_written = self._phase
            self._start("stacks", self._append_stacks)

    def _append_stacks(self) -> None:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        position = self._position()
        now = datetime.now().astimezone()
        text = [f"=== {now:%Y-%m-%d %H:%M:%S%z}, rank {self._world.rank}, {position.phase}: {position}\n"]
        for ident, frame in sorted(sys._current_frames().items(), key=lambda item: item[0] != self._watched_thread):
            if not names.get(ident, "").startswith("watchdog-"):
                text += [f"--- thread {names.get(ident, ident)}, most recent call last\n", *traceback.format_stack(frame)]
        with suppress(OSError, ValueError):
            self._file.write("".join(text))
            self._file.flush()
