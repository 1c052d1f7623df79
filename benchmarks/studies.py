"""Many runs of the real trainer, a few at a time, one thread each. What is finished already is not run again."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import track

from scaling.record import RunRecord, read_record


def train_all(folder: Path, runs: Mapping[str, Sequence[str]], *, at_once: int) -> dict[str, RunRecord]:
    """Train every run (name -> overrides) in `folder`. Returns the records of those that finished; one that diverged has none.

    Raises:
        RuntimeError: a run ended with anything else; its last words are shown.
    """

    def train(name: str) -> RunRecord | None:
        words = [f"run.dir={folder}", f"run.name={name}", *runs[name]]
        command = [sys.executable, "-P", "-m", "train", *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if answer.returncode == 0:
            return read_record(folder / name)
        if answer.returncode == 1 and "diverged" in answer.stderr:
            return None
        raise RuntimeError(f"{' '.join(words)}\n{answer.stderr}")

    with ThreadPoolExecutor(at_once) as pool:
        console = Console(stderr=True)
        records = list(track(pool.map(train, runs), total=len(runs), description="runs", console=console))
    return {name: record for name, record in zip(runs, records, strict=True) if record is not None}
