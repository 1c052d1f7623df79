"""The folder of one run while a process writes it.

Only rank 0 writes. It holds an exclusive lock until it exits.
"""

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

import yaml

from common.errors import UserError, WorkFailed
from common.files import write_atomically
from common.lock import LockHeld, acquire
from scaling.record import EvaluationLine, RunRecord, StepLine, read_record, write_record
from train.checkpoint.manifest import NAME as MANIFEST
from train.checkpoint.manifest import newest_first, remove, step_of
from train.config import Config
from train.folder.identity import changes_from_trunk, differences, require_same_precision, require_same_run
from train.folder.metrics_file import MetricsFile
from train.folder.reading import load_run_config, named_checkpoint, path_of
from train.folder.rebuilt import rebuilt_record

log = logging.getLogger("foretrain")

LOCK_WAIT_SECONDS = 5.0


class RunDirectory:
    """`<run.dir>/<run.name>`, locked for this process."""

    def __init__(self, config: Config) -> None:
        """Lock the folder, and check an existing run in it against `config`.

        Raises:
            UserError: another process holds the lock, or the folder has a run that `config` may not continue.
        """
        self.config = config
        self.path = path_of(config)
        named = config.run.resume not in ("auto", "never", "restart")
        self.checkpoint = named_checkpoint("run.resume", config.run.resume) if named else None
        self.restarts = config.run.resume == "restart"
        """whether an unfinished run begins at step 0, its checkpoints set aside"""
        self.trunk = Path(config.run.trunk).expanduser() if config.run.trunk is not None else None
        self.changes: list[str] = []
        """differences from the last start of this run, or from its trunk, one line per key"""
        self.damage: str | None = None
        """what is wrong with the record of the run, which was rebuilt"""
        self._metrics: MetricsFile | None = None
        try:
            # Processes of a killed run may still be exiting.
            self._lock = acquire(self.path / ".lock", wait_seconds=LOCK_WAIT_SECONDS)
            # Checked under the lock, so that another process's files are never removed.
            self._is_new = [path.name for path in self.path.iterdir()] == [".lock"]
        except LockHeld as holder:
            raise UserError(f"{self.path} is in use by {holder}: wait for it, stop it, or choose another run.name") from None
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}; choose another run.dir or run.name") from None
        try:
            self.existing = self._check_existing()
        except BaseException:
            self.close()
            raise

    @property
    def finished(self) -> bool:
        """Whether this run is finished already."""
        return self.existing is not None and self.existing.status == "finished" and not self._forced

    @property
    def begun(self) -> bool:
        """Whether this process has started to write the run."""
        return self._metrics is not None

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def candidates(self) -> list[Path]:
        """The checkpoints that this run may start from, the best first."""
        if self.checkpoint is not None:
            return [self.checkpoint]
        own = [] if self.restarts else newest_first(self.checkpoints)
        return [*own, *([self.trunk] if self.trunk is not None else [])]

    def before(self, step: int) -> list[Path]:
        """The checkpoints of steps before `step`, the newest first."""
        return [folder for folder in newest_first(self.checkpoints) if (step_of(folder) or 0) < step]

    def rewind(self, step: int) -> None:
        """Drop the metrics of steps after `step`."""
        self._metrics = self.metrics.rewind(step)

    def begin(self, record: RunRecord, shards: Path, step: int = 0) -> None:
        """Write the configuration and the record of a run that starts at `step`, and copy its tokenizer and data index.

        Metrics of later steps, from an earlier process, are dropped: the steps are repeated. Checkpoints of later steps are
        renamed, because their metrics no longer exist.
        """
        self._set_aside(step)
        if self.restarts and self.existing is not None and (self.path / "metrics.jsonl").exists():
            shutil.copyfile(self.path / "metrics.jsonl", self.path / "aside_metrics.jsonl")
        if self.damage is not None and (self.path / "run.json").exists():
            os.replace(self.path / "run.json", self.path / "aside_run.json")
        shutil.copyfile(shards / "tokenizer.json", self.path / "tokenizer.json")
        shutil.copyfile(shards / "index.json", self.path / "data.json")
        whole = self.trunk is None and self.config.run.resume in ("auto", "restart")
        self._metrics = MetricsFile(self.path / "metrics.jsonl", step, whole=whole)
        write_record(self.path, record)
        # Written last: the configuration makes the folder a run.
        write_atomically(self.path / "config.yaml", yaml.safe_dump(self.config.as_dict(), sort_keys=False))
        self._is_new = False

    def _set_aside(self, step: int) -> None:
        for folder in newest_first(self.checkpoints):
            if (step_of(folder) or 0) <= step:
                continue
            if not (folder / MANIFEST).exists():
                remove(folder)
                continue
            aside = folder.with_name(f"aside_{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            log.info("%s is set aside as %s", folder, aside.name)

    def append(self, line: StepLine | EvaluationLine) -> None:
        """Append a line to `metrics.jsonl`."""
        self.metrics.append(line)

    @property
    def metrics(self) -> MetricsFile:
        """The metrics of a run that has begun."""
        assert self._metrics is not None
        return self._metrics

    def write(self, record: RunRecord) -> None:
        """Rewrite `run.json`."""
        write_record(self.path, record)

    def close(self) -> None:
        """Release the lock. Remove a new folder if its run never began."""
        if self._metrics is not None:
            with suppress(OSError, WorkFailed):  # a full disk was reported before; the lock must be released in any case
                self._metrics.close()
        if self._is_new:
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()

    def _check_existing(self) -> RunRecord | None:
        """The record of the run in the folder, if any. Checks `config` against that run, or the one that it starts from."""
        self._forced = False
        config = self.config
        if not (self.path / "config.yaml").exists():
            if self.checkpoint is not None:
                self._check_named_checkpoint(self.checkpoint)
            if self.trunk is not None:
                self.changes = changes_from_trunk(config, self.trunk)
            return None
        if config.run.resume == "never":
            raise UserError(f"{self.path} exists and run.resume=never: choose another run.name, or delete it")
        try:
            before = load_run_config(self.path)
        except (ValueError, OSError) as error:
            raise UserError(f"{error}; put its config.yaml back from a copy, or choose another run.name") from None
        record = self._record_of(before)
        changes = differences(before.as_dict(), config.as_dict())
        self.changes = [f"changed since the last start: {line}" for line in changes]
        self._forced = require_same_run(config, before, self.path, self.checkpoint)
        if self.checkpoint is not None and self.checkpoint.parent.resolve() != self.checkpoints.resolve():
            if record.resumed_from != str(self.checkpoint):
                raise UserError(
                    f"{self.path} exists and does not come from run.resume={self.checkpoint}: choose another run.name"
                )
            self.checkpoint = None  # the run started from it before, and now has checkpoints of its own
        return record

    def _record_of(self, before: Config) -> RunRecord:
        """The run's record; rebuilt where the file is damaged, which must not keep its checkpoints from being used."""
        try:
            return read_record(self.path)
        except (ValueError, OSError) as error:
            self.damage = str(error)
            return rebuilt_record(before, self.path)

    def _check_named_checkpoint(self, checkpoint: Path) -> None:
        run = checkpoint.parent.parent
        before = load_run_config(run)
        self._forced = require_same_run(self.config, before, run, checkpoint)
        if self._forced:
            require_same_precision("run.resume", checkpoint, before, self.config)
            lines = differences(before.identity(), self.config.identity(), common=True)
            self.changes = [f"unlike {checkpoint}: {line}" for line in lines]
