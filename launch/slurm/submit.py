"""Writes the script of a job, keeps a snapshot of the code beside it, and queues it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import jinja2

from launch.ladder.queue import FOLDER
from launch.ours import PACKAGES, ROOT
from launch.slurm.cluster import Cluster
from launch.slurm.request import Shape, slurm


@dataclass(frozen=True)
class Batch:
    """One job, or one array of them."""

    name: str
    words: tuple[tuple[str, ...], ...]
    """overrides of every run"""
    run_dir: str
    shape: Shape
    array: bool = False
    after: tuple[str, ...] = field(default=())
    """jobs that must have ended before"""


def script(batch: Batch, cluster: Cluster, *, preflight: bool) -> str:
    """The text of a job's script."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), keep_trailing_newline=True, autoescape=False
    )
    environment.filters["quote"] = shlex.quote
    return environment.get_template("job.sh.j2").render(
        title="a ladder of runs" if batch.array else f"the run {batch.name}",
        name=batch.name,
        cluster=cluster,
        shape=batch.shape,
        array=batch.array,
        words=batch.words[0],
        run_dir=batch.run_dir,
        preflight=preflight,
    )


def prepare(batch: Batch, cluster: Cluster, *, preflight: bool) -> Path:
    """Write script, overrides and code of a job into a new folder, and return that."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    folder = Path(batch.run_dir).expanduser() / FOLDER / f"{batch.name}-{stamp}"
    (folder / "runs").mkdir(parents=True)
    (folder / "job.sh").write_text(script(batch, cluster, preflight=preflight), encoding="utf-8")
    for number, words in enumerate(batch.words):
        (folder / "runs" / f"{number}.json").write_text(json.dumps(words, indent=1), encoding="utf-8")
    snapshot(folder / "code")
    return folder.resolve()


def snapshot(folder: Path) -> None:
    """Copy the code, so that later edits do not change a queued run. `REVISION` has its commit."""
    for package in sorted(PACKAGES):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    if (ROOT / ".git").exists():
        said = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        (folder / "REVISION").write_text(said.stdout, encoding="utf-8")
    elif (ROOT / "REVISION").is_file():
        shutil.copy(ROOT / "REVISION", folder)


def sbatch_words(folder: Path, batch: Batch, most_at_once: int = 0) -> list[str]:
    """The command that queues a prepared job."""
    limit = f"%{most_at_once}" if most_at_once else ""
    log = folder / ("%A_%a.log" if batch.array else "%j.log")
    return [
        *("sbatch", "--parsable", f"--output={log}"),
        *([f"--array=0-{len(batch.words) - 1}{limit}"] if batch.array else []),
        *([f"--dependency=afterany:{':'.join(batch.after)}"] if batch.after else []),
        str(folder / "job.sh"),
    ]


def submit(folder: Path, batch: Batch, most_at_once: int = 0) -> str:
    """Queue a prepared job. Returns its number.

    Raises:
        WorkFailed: the scheduler refuses it.
    """
    words = sbatch_words(folder, batch, most_at_once)
    job = slurm(*words, FORETRAIN_LAUNCH=str(folder), FORETRAIN_PYTHON=sys.executable).strip().split(";")[0]
    (folder / "job").write_text(f"{job}\n", encoding="utf-8")
    return job


def command_line(words: Sequence[str]) -> str:
    """As a user would type it."""
    return shlex.join([os.fspath(word) for word in words])
