"""The loop of one run on one rank: where it starts from, its steps, and how it ends."""

import dataclasses
import logging
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch.distributed as dist
from torch.profiler import record_function

from common.errors import UserError, WorkFailed
from parallel.agreement import Agreement
from parallel.batch import Batch
from parallel.engine.protocol import StepResult
from parallel.mesh import Meshes, World, build_meshes
from scaling.record import EvaluationLine, RunRecord, StepLine, read_metrics
from train import metrics, report
from train.build import COMPUTE_DTYPES, build_engine
from train.checkpoint.manifest import BrokenCheckpointError, Manifest, Progress
from train.checkpoint.saver import Saver
from train.checkpoint.storage import read_state
from train.checkpoint.verify import Verified, newest_verified
from train.config import Config, schedule_of
from train.data.loader import TrainLoader, ValidationLoader
from train.data.shards import Shards
from train.health import Health, Judgement
from train.memory import PeakMemory
from train.profile import traced
from train.quantization import Quantization
from train.run_directory import RunDirectory, now, path_of
from train.stop import StopRequest, exit_code, name_of
from train.watchdog import Watchdog

log = logging.getLogger("foretrain")


@dataclass(frozen=True)
class _Pending:
    """A step whose scalars are not read yet: they are read one step later, so that the device never waits for the host."""

    progress: Progress
    """after the step"""
    batch_tokens: int
    learning_rate: float
    result: StepResult


class Trainer:
    """The loop of one rank. `directory` is rank 0's; only it writes the record and the metrics."""

    def __init__(self, config: Config, world: World, shards: Shards, directory: RunDirectory | None, stop: StopRequest) -> None:
        self.config, self.world, self.shards, self.directory, self.stop = config, world, shards, directory, stop
        self.meshes: Meshes = build_meshes(config.parallel.layout, world.device)
        self.schedule, self.batches = schedule_of(config), config.batches
        self.loader = TrainLoader(shards.train, config.train.sequence, config.run.seed)
        self.validation = ValidationLoader(shards.validation, config.train.sequence, config.eval.tokens)
        self.engine = build_engine(config, self.meshes, world.device)
        self.quantization = Quantization(config, self.engine, COMPUTE_DTYPES[config.train.precision])
        self.memory = PeakMemory(world.device, self.engine.parameters(), watch=not config.train.compile)
        self.record: RunRecord = metrics.new_record(config, world)
        self.peak_flops = metrics.total_peak_flops(world.device, config.train.precision)
        self.agreement = Agreement(world.size)
        self.health = Health(config.health)
        self.progress = Progress()
        self.saver = Saver(
            path_of(config) / "checkpoints",
            self._manifest,
            keep=config.checkpoint.keep,
            for_good=self._is_kept_for_good,
            timeout_seconds=config.checkpoint.timeout_seconds,
        )
        self.watchdog = Watchdog(world, path_of(config) / "logs", config.health.step_timeout_seconds)
        self.step_seconds: list[float] = []
        self.speeds: list[float] = []  # tokens per second, step by step
        self.started = time.perf_counter()
        self._last_read = self.started
        self._before_seconds = 0.0  # wall time of the processes before this one
        self._saved_step = 0  # the newest step that a checkpoint was begun of
        self._stopped_by = 0

    def train(self) -> int:
        """Train to the end, or until a signal. Returns the exit code.

        Raises:
            UserError: the run cannot go on from the checkpoint it was told to.
            WorkFailed: the loss stopped being finite, or the disk failed.
        """
        try:
            with report.log_to(self.directory.path if self.directory else None), self.watchdog:
                self._start()
                report.announce(self.config, self.record, self.shards, self._last_step)
                self._loop()
                return self._preempt() if self._stopped_by else self._finish()
        except BaseException as error:
            with suppress(OSError, WorkFailed):  # what failed may be the very disk
                self._close("failed")
            if isinstance(error, OSError):
                raise WorkFailed(f"run {self.config.run.name} failed: {error}") from error
            raise
        finally:
            self.saver.close()

    # Where it starts from

    def _start(self) -> None:
        """Go on from the newest checkpoint that verifies, or begin."""
        directory = self.directory
        skipped: list[tuple[Path, str]] = []
        found = newest_verified(directory.candidates() if directory is not None else [], skipped)
        if found is None and directory is not None and (directory.checkpoint or directory.trunk):
            key = "run.resume" if directory.checkpoint else "run.trunk"
            raise UserError(f"{key}={skipped[-1][0]} is not what was saved: {skipped[-1][1]}")
        for folder, problem in skipped:
            log.warning("%s is passed over: %s", folder, problem)
        if found is not None:
            self._load(found)
            log.info(
                "going on from %s (%s tokens); %s bytes verified at %.2f GB/s",
                found.folder,
                f"{self.progress.tokens:,}",
                f"{found.manifest.total_bytes:,}",
                found.bytes_per_second / 1e9,
            )
        elif directory is not None and directory.existing is not None:
            log.info("%s was left unfinished without a checkpoint: starting over", directory.path)
        if directory is not None:
            self._begin(directory, found)
        evaluated = self._restore()
        if self._evaluates() and not evaluated:
            self._evaluate()

    def _begin(self, directory: RunDirectory, found: Verified | None) -> None:
        for change in directory.changes:
            log.info("%s", change)
        if found is not None:
            self.record.resumed_from = str(found.folder)
            if directory.existing is not None:
                before = directory.existing
                self.record.started, self._before_seconds = before.started, before.wall_seconds
                self.record.skipped_steps = before.skipped_steps
        self._count()
        directory.begin(self.record, self.shards.folder, self.progress.step)

    def _load(self, found: Verified) -> None:
        """Take over what a checkpoint holds."""
        self.quantization.restore(found.manifest.progress.tokens)
        try:
            self.engine.load(lambda state: read_state(found.folder, state, dist.group.WORLD))
        except BrokenCheckpointError as error:
            raise UserError(f"{found.folder} does not fit this run: {error}") from None
        self.progress = found.manifest.progress
        self._saved_step = self.progress.step

    def _restore(self) -> bool:
        """Take up what was measured before this point, which rank 0 has in its metrics.

        Returns whether this very step is evaluated, if it is one to be: a run may have been killed in the middle of that.
        """
        losses: list[float] = []
        evaluated: EvaluationLine | None = None
        if self.directory is not None:
            for line in read_metrics(self.directory.path):
                if isinstance(line, EvaluationLine):
                    evaluated = line
                elif line.loss is not None and self._same_precision(line.tokens):
                    losses.append(line.loss)
        told = [(losses[-self.config.health.spike_window :], evaluated)]
        dist.broadcast_object_list(told, src=0)
        losses, evaluated = told[0]
        self.health.restart(losses)
        if evaluated is not None:
            self._take_evaluation(evaluated.validation["validation"])
        return evaluated is not None and evaluated.step == self.progress.step

    def _same_precision(self, tokens: int) -> bool:
        """Whether the step that ended there can be compared with the next one: quantized weights cost loss."""
        phase = self.quantization.phase
        return phase is None or phase.holds(tokens) == self.quantization.active

    def _take_evaluation(self, loss: float) -> None:
        validation, record = self.shards.validation, self.record
        record.loss, record.losses = loss, {"validation": loss}
        record.bits_per_byte = loss / math.log(2) * validation.tokens / validation.bytes

    # Its steps

    def _loop(self) -> None:
        """Steps until the end, or until a signal that any rank has got."""
        config = self.config
        asynchronous = self.world.device.type != "cpu"
        pending: _Pending | None = None
        trace = path_of(config) / "trace" if config.train.profile else None
        first = self.progress.step
        with (
            report.progress(self._last_step, first, shown=self.directory is not None) as advance,
            traced(trace, self.world.rank) as traced_step,
        ):
            self._last_read = time.perf_counter()
            while not self._at_end and not self._stopped_by:
                self.watchdog.phase(f"step {self.progress.step + 1}", self._patience())
                if asked := self.agreement.exchange(self.stop.signal):
                    self._stopped_by = asked
                    if pending is not None:
                        self._settle(pending, advance)
                    return
                begun = self._step(self.progress.step - first)
                traced_step()
                if pending is not None and self._settle(pending, advance):
                    pending = None  # the step begun meanwhile is undone as well
                    continue
                pending = begun
                if asynchronous and not self._at_border():
                    continue
                rewound = self._settle(pending, advance)
                pending = None
                if not rewound and self._at_border():
                    self._border()

    def _patience(self) -> float:
        """How many of its limits the watchdog gives a step: a slow machine's steps are no hang, and the first one compiles."""
        limit = self.config.health.step_timeout_seconds
        return max(1.0, 10.0 * max(self.step_seconds) / limit) if limit and self.step_seconds else 10.0

    def _step(self, number: int) -> _Pending:
        """Begin the next step; `number` counts those of this process from 0."""
        if self.quantization.begins(self.progress.tokens):
            self.quantization.begin()
            self.health.restart([])
            self.memory.watch_from(number)
            log.info("step %d: the weights are quantized from here on", self.progress.step + 1)
        batch_tokens = self.batches.batch_after(self.progress.tokens)
        samples = batch_tokens // self.config.train.sequence
        with record_function("batches"):
            batches = self._batches(self.progress.samples, batch_tokens // self.config.pass_tokens)
        self.progress = self.progress.after(batch_tokens, samples)
        learning_rate = self.schedule.learning_rate(self.progress.tokens)
        with self.memory.watching(number) or nullcontext():
            result = self.engine.train_step(batches, learning_rate=learning_rate, tokens=batch_tokens)
        return _Pending(self.progress, batch_tokens, learning_rate, result)

    def _batches(self, first: int, accumulation: int) -> list[Batch]:
        """This rank's micro-batches of a step: its slice of the global sample numbers from `first` on."""
        microbatch = self.config.train.microbatch
        ranks, rank = self.config.parallel.layout.data_parallel, self.meshes.data_rank
        starts = [first + (index * ranks + rank) * microbatch for index in range(accumulation)]
        return [self.loader.batch(range(start, start + microbatch)) for start in starts]

    def _at_border(self) -> bool:
        """Whether something follows this step that must know that it was healthy."""
        return self._at_end or self._saves() or self._evaluates()

    def _border(self) -> None:
        if self._saves():
            self._save()
        if self._evaluates():
            self._evaluate()
        self._last_read = time.perf_counter()

    @property
    def _at_end(self) -> bool:
        return self.progress.tokens >= self.config.total_tokens

    @property
    def _last_step(self) -> int:
        """The number of the step at the end: those done may have had other batches, on a branch of another run."""
        return self.progress.step + self.batches.steps(self.config.total_tokens, self.progress.tokens)

    def _evaluates(self) -> bool:
        return self.progress.step > 0 and (self._at_end or self._crosses(self.config.eval.every_tokens))

    def _saves(self) -> bool:
        border = self._is_border(self.progress.tokens)
        return not self._at_end and (border or self._crosses(self.config.checkpoint_every_tokens))

    def _is_border(self, tokens: int) -> bool:
        """Whether a step that ends here is the last one before a decay or quantization begins, or before the trunk goes on."""
        after = tokens + self.batches.batch_after(tokens)
        phase = self.quantization.phase
        borders = [*self.schedule.borders(), *([phase.start] if phase is not None and phase.start > 0 else [])]
        return any(tokens <= border < after for border in borders)

    def _is_kept_for_good(self, older: int, tokens: int) -> bool:
        keep_every = self.config.checkpoint.keep_every
        every = keep_every and keep_every * self.config.checkpoint_every_tokens
        return self._is_border(tokens) or (every is not None and tokens // every > older // every)

    def _crosses(self, every: int | None) -> bool:
        """Whether the step just done has passed a multiple of `every` tokens."""
        tokens = self.progress.tokens
        return every is not None and tokens // every > self._before(tokens) // every

    def _before(self, tokens: int) -> int:
        return tokens - self.batches.batch_before(tokens)

    def _settle(self, pending: _Pending, advance: report.Advance) -> bool:
        """Wait for a step's scalars, write its line, act on what they say. Returns whether the run went back."""
        line, judgement = self._read(pending)
        advance(line)
        if judgement.verdict == "healthy":
            return False
        if judgement.verdict == "stop":
            raise WorkFailed(
                f"run {self.config.run.name} diverged and was stopped at step {line.step} ({line.tokens} tokens): "
                f"{judgement.why}. A lower schedule.peak or a longer schedule.warmup_tokens may help, or "
                f"health.on_nonfinite=rewind to leave the data out"
            )
        if judgement.verdict == "rewind":
            self._rewind(pending.progress, judgement.why)
            return True
        if judgement.verdict == "skipped":
            self.record.skipped_steps += 1
        log.warning("step %d: %s%s", line.step, judgement.why, "; the step was skipped" * (judgement.verdict == "skipped"))
        return False

    def _read(self, pending: _Pending) -> tuple[StepLine, Judgement]:
        loss, gradient_norm = pending.result.loss.item(), pending.result.gradient_norm.item()
        seconds = time.perf_counter() - self._last_read
        self._last_read += seconds
        self.step_seconds.append(seconds)
        self.speeds.append(pending.batch_tokens / seconds)
        line = StepLine(
            step=pending.progress.step,
            tokens=pending.progress.tokens,
            loss=loss,
            learning_rate=pending.learning_rate,
            gradient_norm=gradient_norm,
            phase=self.schedule.phase(pending.progress.tokens),
            tokens_per_second=self.speeds[-1],
            step_seconds=seconds,
            memory_bytes=self.memory.peak_bytes(),
        )
        if self.directory is not None:
            self.directory.append(line)
        return line, self.health.judge(loss, gradient_norm)

    def _rewind(self, bad: Progress, why: str) -> None:
        """Go back to the newest checkpoint before a step that went wrong, and leave the samples since then out.

        Raises:
            WorkFailed: there is none, or this has happened too often.
        """
        name, patience = self.config.run.name, self.config.health.patience
        if len(self.progress.skipped) >= patience:
            raise WorkFailed(f"run {name} went wrong again at step {bad.step} after {patience} rewinds: {why}")
        self.saver.finish()
        skipped: list[tuple[Path, str]] = []
        found = newest_verified(self.directory.before(bad.step) if self.directory is not None else [], skipped)
        if found is None:
            raise WorkFailed(f"run {name} went wrong at step {bad.step} and has no checkpoint to go back to: {why}")
        before = self.progress.skipped
        self._load(found)
        first = self.progress.samples
        for _, behind in before:
            first = max(first, behind)  # what an earlier rewind to this checkpoint has left out already
        left_out = (first, bad.samples)
        self.progress = dataclasses.replace(self.progress, samples=bad.samples, skipped=(*before, left_out))
        log.warning(
            "step %d: %s. Back to step %d; samples %d to %d are left out",
            *(bad.step, why, self.progress.step, left_out[0], left_out[1] - 1),
        )
        if self.directory is not None:
            self.directory.rewind(self.progress.step)
        self._count()
        self._restore()
        self._last_read = time.perf_counter()

    def _save(self) -> None:
        if self.saver.save(self.engine.state(), self.progress):
            self._saved_step = self.progress.step

    def _manifest(self, progress: Progress, files: dict[str, tuple[int, str]]) -> Manifest:
        """On rank 0, in the background: the metrics up to a checkpoint are as durable as the checkpoint."""
        assert self.directory is not None
        self.directory.metrics.sync()
        return Manifest(
            progress=progress,
            config_hash=self.record.config_hash,
            layout=self.record.layout,
            world_size=self.world.size,
            precision=self.record.precision,
            versions=self.record.versions,
            saved=now(),
            files=files,
        )

    def _evaluate(self) -> None:
        self.watchdog.phase(f"evaluation at step {self.progress.step}", 10.0)
        loss = self.engine.evaluate(self._validation_batches())
        if self._stopped_by:
            return  # it was broken off, and is made up for when the run goes on
        record, step = self.record, self.progress.step
        self.peak_flops = metrics.total_peak_flops(self.world.device, self.config.train.precision, known=self.peak_flops)
        self._take_evaluation(loss)
        log.info("step %d: validation loss %.4f, %.4f bits per byte", step, loss, record.bits_per_byte)
        if self.directory is not None:
            self.directory.append(EvaluationLine(step=step, tokens=self.progress.tokens, validation=record.losses))
        self._write_record()
        if not math.isfinite(loss):
            raise WorkFailed(
                f"run {self.config.run.name} stopped at step {step}: validation loss {loss}. "
                "A lower schedule.peak or a longer schedule.warmup_tokens may help"
            )

    def _validation_batches(self) -> Iterator[Batch]:
        """This rank's share of the validation windows. Every rank gets equally many; beyond the last they count nothing."""
        microbatch = self.config.train.microbatch
        ranks, rank = self.config.parallel.layout.data_parallel, self.meshes.data_rank
        for first in range(0, self.validation.num_samples, microbatch * ranks):
            if first > 0 and (asked := self.agreement.exchange(self.stop.signal)):
                self._stopped_by = asked
                return
            start = first + rank * microbatch
            yield self.validation.batch(range(start, start + microbatch))

    # How it ends

    def _finish(self) -> int:
        """Save the last checkpoint, close the record, show what came out."""
        if not self._make_sure_of_checkpoint():
            raise WorkFailed(
                f"run {self.config.run.name} is trained, but its last checkpoint could not be written to "
                f"{self.saver.checkpoints}: make room and type the command again; it goes on from the checkpoint before"
            )
        self.record.peak_memory_bytes = metrics.largest(self.memory.peak_bytes())
        if self.directory is None:
            return 0
        self.directory.metrics.flush()
        report.draw_loss(self.directory.path)
        self._close("finished")
        report.show_table(self.directory.path, self.record)
        return 0

    def _preempt(self) -> int:
        """Save where the run stands and say so."""
        saved = self._make_sure_of_checkpoint()
        self._write_record()
        self._close("preempted")
        outcome = "saved" if saved else "its last checkpoint could NOT be written, an older one stays"
        log.info(
            "stopped by %s at step %d (%s tokens); %s. The same command goes on",
            *(name_of(self._stopped_by), self.progress.step, f"{self.progress.tokens:,}", outcome),
        )
        return exit_code(self._stopped_by, saved=saved)

    def _make_sure_of_checkpoint(self) -> bool:
        """Whether this very step is on disk; it is saved where it is not."""
        self.watchdog.phase("saving", math.inf)  # it has a limit of its own
        saved = self.saver.finish()
        if self.progress.step == self._saved_step and saved:
            return True
        return self.saver.save(self.engine.state(), self.progress) and self.saver.finish()

    def _count(self) -> None:
        record = self.record
        record.tokens, phase = self.progress.tokens, self.quantization.phase
        record.fp_tokens = record.tokens if phase is None else min(record.tokens, phase.start)
        record.qat_tokens = record.tokens - record.fp_tokens
        record.skipped_samples = [list(pair) for pair in self.progress.skipped]

    def _write_record(self) -> None:
        """Bring the record up to date; a disk that is full for now keeps the old one."""
        self._count()
        seconds = self._before_seconds + time.perf_counter() - self.started
        metrics.update(self.record, self.config, self.speeds, self.peak_flops, seconds)
        if self.directory is not None:
            try:
                self.directory.write(self.record)
            except OSError as error:
                log.warning("step %d: the record cannot be written: %s", self.progress.step, error)

    def _close(self, status: Literal["finished", "preempted", "failed"]) -> None:
        record = self.record
        record.checkpoints = metrics.checkpoints(self.saver)
        self._count()
        if self.directory is not None and self.directory.begun:  # else it keeps the record it has
            record.status, record.ended = status, now()
            record.wall_seconds = self._before_seconds + time.perf_counter() - self.started
            self.directory.write(record)
