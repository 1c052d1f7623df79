"""Many runs of the real trainer, a few at a time, one thread each. What is finished already is not run again."""

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import track

from scaling.record import RunRecord, read_record


def train_all(folder: Path, runs: Mapping[str, Sequence[str]], *, at_once: int) -> dict[str, RunRecord]:
    """Train every run (name -> overrides) in `folder`. Returns the records of those that finished; one that diverged has none.

    Every run has a process of its own, forked from a server that has imported torch: for short runs that halves the time. The
    calling module is imported there, so it must be one that starts nothing when it is.

    Raises:
        RuntimeError: a run ended with anything else; its last words are shown.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.loop.trainer", "train.__main__", "matplotlib.pyplot"])
    folder.mkdir(parents=True, exist_ok=True)

    def train(name: str) -> RunRecord | None:
        words, log = [f"run.dir={folder}", f"run.name={name}", *runs[name]], folder / f".{name}.log"
        process = context.Process(target=_train, args=(words, log))
        process.start()
        process.join()
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        log.unlink(missing_ok=True)
        # The record says it: the server sometimes loses the exit code of a process that ended well.
        record = read_record(folder / name) if (folder / name / "run.json").exists() else None
        if record is not None and record.status == "finished":
            return record
        if process.exitcode == 1 and "diverged" in text:
            return None
        raise RuntimeError(f"{' '.join(words)}\n{text}")

    with ThreadPoolExecutor(at_once) as pool:
        console = Console(stderr=True)
        records = list(track(pool.map(train, runs), total=len(runs), description="runs", console=console))
    return {name: record for name, record in zip(runs, records, strict=True) if record is not None}


def _train(words: list[str], log: Path) -> None:
    """What a run's process does."""
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    import torch

    from parallel.environment import leave
    from train.command.train import main

    torch.set_num_threads(1)
    code = main(words)
    sys.stdout.flush()
    leave(code)
