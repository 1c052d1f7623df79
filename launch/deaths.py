"""Which process of a run failed first, and what it said last."""

import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from parallel.environment import LOST

LAST_LINES = 2


def report(
    codes: Mapping[int, int], logs: Path, *, asked_to_stop: bool, first_rank: int = 0, last_lines: int = LAST_LINES
) -> int:
    """Say in one message why the run ended, unless a worker has said it. Returns the exit code of the launcher.

    `codes`: exit code of every rank that had failed; negative: killed by that signal. `logs`: the folder of their stderr.
    `asked_to_stop`: whether the launcher has forwarded a signal to them. `first_rank`: of this node.
    """
    # torchrun sends a SIGTERM to the others when one has died, and a SIGKILL to those who do not stop.
    died = any(code < 0 and code != -signal.SIGTERM for code in codes.values())
    if (asked_to_stop or not died) and (stopped := [code for code in codes.values() if code > 128]):
        return stopped[0]  # by a signal to the run, which the worker has reported
    said = {first_rank + local: _last_lines(logs, local, last_lines) for local in _local_ranks(logs)}
    rank = _first(codes, said)
    code = codes.get(rank, LOST) if rank is not None else LOST
    if code in (1, 2) and (rank == 0 or not any("rror" in line for line in said.get(rank or 0, ()))):
        return code  # rank 0 has reported it
    if rank is None:
        print(
            "error: the processes lost each other, and none says why; is the network or the machine at fault?", file=sys.stderr
        )
    else:
        print(f"error: rank {rank} failed first: it {_ending(code)}", file=sys.stderr)
        for line in said.get(rank, ()):
            print(f"  it said last: {line}", file=sys.stderr)
    print("The same command goes on from the newest checkpoint.", file=sys.stderr)
    return 1


def _first(codes: Mapping[int, int], said: Mapping[int, list[str]]) -> int | None:
    """The rank that failed first: killed, or with a code of its own.

    Ranks with `LOST` are victims, and so may those be that got a SIGTERM, which torchrun sends to the others.
    """
    own = sorted(
        (rank for rank, code in codes.items() if code != LOST),
        key=lambda rank: (codes[rank] in (-signal.SIGTERM, 128 + signal.SIGTERM), codes[rank] > 0, rank),
    )
    if own:
        return own[0]
    return next((rank for rank, lines in said.items() if lines and rank not in codes), None)  # still ending when others had


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed by SIGKILL, as the kernel does when memory runs out (see dmesg)"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return "failed" if code == LOST else f"ended with exit code {code}"


def _local_ranks(logs: Path) -> list[int]:
    return sorted(int(path.parent.name) for path in logs.glob("*/attempt_*/*/stderr.log"))


def _last_lines(logs: Path, local_rank: int, count: int) -> list[str]:
    for path in logs.glob(f"*/attempt_*/{local_rank}/stderr.log"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line.strip()[:200] for line in lines if line.strip()][-count:]
    return []
