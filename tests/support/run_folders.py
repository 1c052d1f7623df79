"""The folder of a run that was never trained, and what is in it."""

from dataclasses import replace
from pathlib import Path

from scaling.record import RunRecord
from tests.support.records import EVALUATION, RECORD, STEP
from train.config import Config
from train.folder.directory import RunDirectory


def carry_out(config: Config, shards: Path, status: str = "finished") -> RunRecord:
    """A whole run, without the training."""
    directory = RunDirectory(config)
    record = replace(RECORD)
    directory.begin(record, shards)
    directory.append(STEP)
    directory.append(EVALUATION)
    record.status = status  # type: ignore[assignment]
    directory.write(record)
    directory.close()
    return record
