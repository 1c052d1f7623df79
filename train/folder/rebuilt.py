"""The record of a run whose `run.json` is damaged or missing, from what else the run has left. Imports no torch."""

import dataclasses
import json
import math
from datetime import UTC, datetime
from pathlib import Path

from common.words import timestamp
from scaling.record import RunRecord, StepLine, read_metrics
from train.checkpoint.manifest import BrokenCheckpointError, Manifest, newest_first
from train.config import Config


def rebuilt_record(config: Config, run: Path) -> RunRecord:
    """The record of an unfinished run: its configuration, its newest readable checkpoint and its metrics.

    It is never "finished": a run that has done all its steps ends again from its last checkpoint, which writes every result.
    """
    shape, manifest = config.model.shape, _newest_manifest(run)
    steps = _steps(run)
    tokens = manifest.progress.tokens if manifest is not None else 0
    return RunRecord(
        name=config.run.name,
        status="running",
        seed=config.run.seed,
        parameters=shape.parameters,
        parameters_non_embedding=shape.parameters_non_embedding,
        tokens=tokens,
        flops=6.0 * shape.parameters * tokens,
        tokens_per_parameter=tokens / shape.parameters,
        peak_learning_rate=config.schedule.peak,
        schedule=config.schedule.name,
        batch_tokens=config.train.batch_tokens,
        sequence=config.train.sequence,
        trunk=config.run.trunk,
        model=dataclasses.asdict(config.model),
        layout=manifest.layout if manifest is not None else dataclasses.asdict(config.parallel.layout),
        engine=config.parallel.engine,
        precision=config.train.precision,
        device="unknown",
        world_size=manifest.world_size if manifest is not None else config.parallel.layout.world_size,
        wall_seconds=sum(line.step_seconds or 0.0 for line in steps),
        resumed_from=config.run.resume if config.run.resume not in ("auto", "never", "restart") else None,
        config_hash=config.identity_hash(),
        git_commit=None,
        versions=manifest.versions if manifest is not None else {},
        started=_first_written(run),
        skipped_steps=sum(not _is_finite(line.loss) or not _is_finite(line.gradient_norm) for line in steps),
        skipped_samples=[list(pair) for pair in manifest.progress.skipped] if manifest is not None else [],
    )


def _newest_manifest(run: Path) -> Manifest | None:
    for folder in newest_first(run / "checkpoints"):
        try:
            return Manifest.read(folder)
        except BrokenCheckpointError:
            continue
    return None


def _steps(run: Path) -> list[StepLine]:
    """The readable lines of steps."""
    try:
        return [line for line in read_metrics(run, unreadable=[]) if isinstance(line, StepLine)]
    except OSError:
        return []


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _first_written(run: Path) -> str:
    """When the oldest checkpoint was saved; else when the folder's oldest file was written."""
    times = []
    for folder in newest_first(run / "checkpoints"):
        try:
            times.append(str(json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["saved"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    written = [path.stat().st_mtime for path in run.iterdir() if path.is_file()]
    if not times and written:
        return datetime.fromtimestamp(min(written), UTC).isoformat(timespec="seconds")
    return min(times, default=timestamp())
