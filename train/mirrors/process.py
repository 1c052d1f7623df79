"""`python -P .../process.py MIRROR RUN`: the process of one mirror. Standard input ends when the run does.

Started by its path, so that it is this installation's whatever PYTHONPATH holds.
"""

import select
import signal
import sys
from pathlib import Path

POLL_SECONDS = 1.0


def main(name: str, run: Path) -> None:
    """Follow the run until its end."""
    import importlib

    from train.mirrors.follow import Follower

    # A cluster signals every process of a job. The run decides when it ends, and this process after it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    mirror = importlib.import_module(f"train.mirrors.to_{name}").open_mirror(run)
    follower = Follower(run, sent=mirror.sent)
    try:
        while True:
            ended = bool(select.select([sys.stdin], [], [], POLL_SECONDS)[0])
            for index, line in follower.new_lines():
                mirror.write(index, line)
            mirror.flush()
            if ended:
                return
    finally:
        mirror.close()


if __name__ == "__main__":
    root = str(Path(__file__).resolve().parent.parent.parent)
    sys.path.insert(0, root)
    main(sys.argv[1], Path(sys.argv[2]))
