"""The record for Weights & Biases, offline unless asked otherwise. wandb's step is the number of the line in `metrics.jsonl`.

Each start of a run writes a folder of its own with the run's one id; `wandb sync` makes one run of them.
"""

import dataclasses
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import yaml

from scaling.record import EvaluationLine, StepLine
from scaling.runs.offline_wandb import history
from train.mirrors.tags import values_of


class WandbMirror:
    """A run of wandb's."""

    def __init__(self, run: Path) -> None:
        import wandb

        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        logger, trunk = config["logger"], config["run"]["trunk"]
        folder = run / "mirrors"
        folder.mkdir(exist_ok=True)
        self.sent = _sent(folder / "wandb")
        """lines that earlier starts have written"""
        os.environ.setdefault("WANDB_SILENT", "true")
        self._wandb = wandb.init(
            project=logger["wandb_project"],
            id=_identity(folder / "wandb_id"),
            name=config["run"]["name"],
            # Branches stand with their trunk, whose checkpoint they name: <trunk>/checkpoints/step_...
            group=config["run"]["name"] if trunk is None else Path(trunk).parent.parent.name,
            job_type="run" if trunk is None else "branch",
            config=config,
            dir=str(folder),
            mode=logger["wandb_mode"],
            resume="allow" if logger["wandb_mode"] == "online" else None,
            settings=wandb.Settings(console="off", x_disable_stats=True),
        )
        self._wandb.define_metric("*", step_metric="tokens")

    def write(self, number: int, line: StepLine | EvaluationLine) -> None:
        """Add a line. One that says nothing new to wandb, because an undone line has its number, is left out by it."""
        values: dict[str, Any] = {"step": line.step, "tokens": line.tokens, **values_of(line)}
        if isinstance(line, StepLine):
            values["phase"] = dataclasses.asdict(line)["phase"]
        self._wandb.log(values, step=number)

    def flush(self) -> None:
        """wandb writes on its own."""

    def close(self) -> None:
        """Write the rest."""
        self._wandb.finish(exit_code=0)


def open_mirror(run: Path) -> WandbMirror:
    """The mirror of a run."""
    return WandbMirror(run)


def _identity(path: Path) -> str:
    """The run's id, the same for every start."""
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _sent(folder: Path) -> int:
    """How many lines earlier starts have written, from the files themselves."""
    steps = [-1]
    for path in folder.glob("*run-*/run-*.wandb"):
        try:
            steps += [int(row["_step"]) for row in history(path)]
        except (OSError, ValueError, KeyError) as error:
            print(f"{path} cannot be read: {error}", file=sys.stderr)
    return max(steps) + 1
