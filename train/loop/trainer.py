"""The training loop on one rank."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import chain

import torch
import torch.distributed as dist

from common.errors import WorkFailed
from parallel.batch import Batch
from parallel.delayed_max import DelayedMax
from parallel.engine.protocol import StepResult
from parallel.environment import ProcessEnvironment
from parallel.mesh import World, build_meshes, set_timeout
from parallel.region import region
from scaling.record import StepLine
from train.build.engine import build_engine
from train.build.model import COMPUTE_DTYPES
from train.build.quantization import Quantization
from train.checkpoint.manifest import Progress
from train.checkpoint.saver import Saver
from train.config import Config
from train.data.shards import Shards
from train.data.verify import Verification
from train.folder.directory import RunDirectory
from train.folder.reading import path_of
from train.loop import console
from train.loop.course import Course, PlannedStep
from train.loop.feed import Feed
from train.loop.health import Health
from train.loop.memory import PeakMemory
from train.loop.profiler import traced
from train.loop.recorder import Ending, Recorder, RunRecorder
from train.loop.start import Resumption, skip_samples
from train.loop.stop import StopRequest, exit_code, name_of
from train.loop.throughput import Throughput
from train.loop.watchdog import Watchdog
from train.scoring.built_in import make_tasks
from train.scoring.scorer import Scorer
from train.scoring.tasks import score_task

log = logging.getLogger("foretrain")

NCCL_PATIENCE = 3.0
"""Limits of a step after which NCCL ends the process: late enough for the watchdog to say first which rank waits for what."""


@dataclass(frozen=True)
class _Pending:
    """A step whose scalars have not been read yet."""

    step: PlannedStep
    result: StepResult


class Trainer:
    """The loop of one rank: `course`, `feed` and `engine` determine what it computes, `recorder` and `saver` what it writes."""

    def __init__(
        self,
        config: Config,
        world: World,
        shards: Shards,
        directory: RunDirectory | None,
        stop: StopRequest,
        *,
        asynchronous: bool | None = None,
    ) -> None:
        """`directory`: None on all ranks but 0. `asynchronous`: read a step's scalars after the next step has begun, so that
        the device never waits for the host; None: on all devices but CPUs."""
        self.config, self.world, self.stop = config, world, stop
        self.asynchronous = world.device.type != "cpu" if asynchronous is None else asynchronous
        meshes = build_meshes(config.parallel.layout, world.device)
        self.verification = Verification(shards.folder, wanted=ProcessEnvironment.read().local_rank == 0)
        self.course, self.feed = Course(config), Feed(config, shards, meshes.data_rank)
        self.engine = build_engine(config, meshes, world.device)
        if world.device.type == "cuda" and (limit := config.health.step_timeout_seconds) is not None:
            set_timeout(NCCL_PATIENCE * limit)
        self.tasks = make_tasks(config.eval.tasks, shards)
        self.scorer = Scorer(self.engine, shards.encoder(), config, meshes)
        self.quantization = Quantization(config, self.engine, COMPUTE_DTYPES[config.train.precision])
        parameters = [parameter for _, parameter in self.engine.named_parameters()]
        self.memory = PeakMemory(world.device, parameters, watch=not config.train.compile)
        self.throughput = Throughput(world.device, config.train.precision)
        self.recorder = Recorder()
        if directory is not None:
            self.recorder = RunRecorder(config, world, shards, directory, self.quantization, self.throughput)
        self.stop_vote = DelayedMax(world.size)
        self.health = Health(config.health)
        self.resumption = Resumption(self.engine, self.quantization, directory)
        self.progress = Progress()
        self.saver = Saver(
            path_of(config) / "checkpoints",
            self.recorder.manifest,
            keep=config.checkpoint.keep,
            for_good=self.course.is_kept_for_good,
            timeout_seconds=config.checkpoint.timeout_seconds,
        )
        self.watchdog = Watchdog(world, path_of(config) / "logs", config.health.step_timeout_seconds)
        self.log_folder = None if directory is None else directory.path / "logs"
        self._saved_step = 0  # the newest step whose checkpoint was begun
        self._last_read = 0.0  # time of the last read of a step's scalars

    def train(self) -> int:
        """Train to the end, or until a signal. Returns the exit code.

        Raises:
            UserError: the run cannot resume from the checkpoint that the user named.
            WorkFailed: the loss was not finite, or the disk failed.
        """
        try:
            with console.log_to(self.log_folder), self.watchdog:
                stopped_by = self._start() or self._loop()
                return self._preempt(stopped_by) if stopped_by else self._finish()
        except BaseException as error:
            with suppress(OSError, WorkFailed):  # the disk itself may have failed
                self._close("failed")
            if isinstance(error, OSError):
                raise WorkFailed(f"run {self.config.run.name} failed: {error}") from error
            raise
        finally:
            self.verification.close()
            self.saver.close()

    def _start(self) -> int:
        """Resume from the newest checkpoint that verifies, or begin. Returns the signal that stopped an evaluation, or 0."""
        resumed = self.resumption.newest()
        if resumed is not None:
            self.progress = resumed.manifest.progress
            self._saved_step = self.progress.step
        self.recorder.begin(resumed, self.progress, self.course.last_step(self.progress))
        # The run may have been killed during an evaluation.
        evaluated = self._restore_history()
        return 0 if evaluated or not self.course.evaluates(self.progress) else self._evaluate()

    def _restore_history(self) -> bool:
        """Restore earlier losses and the newest evaluation from rank 0. Returns whether the current step was evaluated."""
        history = [self.recorder.history()]
        dist.broadcast_object_list(history, src=0)
        losses, evaluation = history[0]
        self.health.restart(losses)
        if evaluation is not None:
            self.recorder.evaluated(evaluation.validation, evaluation.errors)
        return evaluation is not None and evaluation.step == self.progress.step

    def _loop(self) -> int:
        """Do steps until the end, or until any rank gets a signal. Returns that signal, or 0."""
        self.stop.acts = True
        pending: _Pending | None = None
        trace = path_of(self.config) / "trace" if self.config.train.profile else None
        first, last = self.progress.step, self.course.last_step(self.progress)
        with (
            console.progress(last, first, shown=self.world.rank == 0) as advance,
            traced(trace, self.world.rank) as traced_step,
        ):
            self._last_read = time.perf_counter()
            while not self.course.at_end(self.progress):
                self.verification.check()
                self.watchdog.phase(f"step {self.progress.step + 1}", self._patience())
                if stopped_by := self.stop_vote.exchange(self.stop.signal):
                    if pending is not None:
                        self._settle(pending, advance)
                    return stopped_by
                new = self._step(self.progress.step - first)
                traced_step()
                if pending is not None and self._settle(pending, advance):
                    pending = None  # the rewind has undone the new step too
                    continue
                pending = new
                if self.asynchronous and not self.course.pauses(self.progress):
                    continue
                rewound = self._settle(pending, advance)
                pending = None
                if not rewound and (stopped_by := self._pause()):
                    return stopped_by
        return 0

    def _patience(self) -> float:
        """How many limits a step may take before the watchdog reports it: more on slow machines and for the first step, which
        compiles."""
        limit, longest = self.config.health.step_timeout_seconds, self.throughput.longest_step_seconds
        return max(1.0, 10.0 * longest / limit) if limit and longest else 10.0

    def _step(self, number: int) -> _Pending:
        """Begin the next step. `number`: its number in this process, from 0."""
        if self.quantization.begins(self.progress.tokens):
            self.quantization.begin()
            self.health.restart([])
            self.memory.watch_from(number)
            log.info("step %d: low precision begins, quant=%s", self.progress.step + 1, self.config.quant.name)
        self.quantization.prepare_step(self.progress.step)
        step = self.course.step_after(self.progress)
        with region("batches"):
            last = self.course.at_end(step.after)
            batches = self.feed.step(step, following=None if last else self.course.step_after(step.after))
        self.progress = step.after
        with self.memory.watching(number) or nullcontext():
            result = self.engine.train_step(batches, learning_rate=step.learning_rate, tokens=step.batch_tokens)
        return _Pending(step, result)

    def _pause(self) -> int:
        """Save and evaluate if due. Returns the signal that stopped the evaluation, or 0."""
        stopped_by = 0
        if self.course.saves(self.progress):
            self._save()
        if self.course.evaluates(self.progress):
            stopped_by = self._evaluate()
        self._last_read = time.perf_counter()
        return stopped_by

    def _settle(self, pending: _Pending, advance: console.Advance) -> bool:
        """Wait for a step's scalars, write its line, and act on its health. Returns whether the run was rewound."""
        line = self._read(pending)
        self.recorder.step(line)
        advance(line)
        judgement = self.health.judge(line.loss, line.gradient_norm)
        if judgement.verdict == "healthy":
            return False
        if judgement.verdict == "stop":
            raise WorkFailed(
                f"run {self.config.run.name} diverged and was stopped at step {line.step} ({line.tokens} tokens): "
                f"{judgement.why}. A lower schedule.peak or a longer schedule.warmup_tokens may help, or "
                f"health.on_nonfinite=rewind to leave the data out"
            )
        if judgement.verdict == "rewind":
            self._rewind(pending.step.after, judgement.why)
            return True
        if judgement.verdict == "skipped":
            self.recorder.skipped()
        log.warning("step %d: %s%s", line.step, judgement.why, "; the step was skipped" * (judgement.verdict == "skipped"))
        return False

    def _read(self, pending: _Pending) -> StepLine:
        """Wait for a step's scalars. Returns its line."""
        loss, gradient_norm = pending.result.loss.item(), pending.result.gradient_norm.item()
        seconds = time.perf_counter() - self._last_read
        self._last_read += seconds
        step = pending.step
        return StepLine(
            step=step.after.step,
            tokens=step.after.tokens,
            loss=loss,
            learning_rate=step.learning_rate,
            gradient_norm=gradient_norm,
            phase=self.course.schedule.phase(step.after.tokens),
            tokens_per_second=self.throughput.add(step.batch_tokens, seconds),
            step_seconds=seconds,
            memory_bytes=self.memory.peak_bytes(),
        )

    def _rewind(self, bad: Progress, why: str) -> None:
        """Go back to the newest checkpoint before a bad step, and skip the samples since then.

        Raises:
            WorkFailed: there is no such checkpoint, or the run was rewound too often.
        """
        name, patience = self.config.run.name, self.config.health.patience
        if len(bad.skipped) >= patience:
            raise WorkFailed(f"run {name} went wrong again at step {bad.step} after {patience} rewinds: {why}")
        self.saver.finish()
        checkpoint = self.resumption.before(bad.step)
        if checkpoint is None:
            raise WorkFailed(f"run {name} went wrong at step {bad.step} and has no checkpoint to go back to: {why}")
        self.progress = skip_samples(checkpoint.manifest.progress, bad)
        self._saved_step = self.progress.step
        first, end = self.progress.skipped[-1]
        log.warning(
            "step %d: %s. Back to step %d; samples %d to %d are left out", bad.step, why, self.progress.step, first, end - 1
        )
        self.recorder.rewound(self.progress)
        self._restore_history()
        self._last_read = time.perf_counter()

    def _evaluate(self) -> int:
        """Measure the losses of validation and of every set, and answer the tasks.

        Returns the signal that stopped the measurement, which a restart repeats, or 0.
        """
        self.watchdog.phase(f"evaluation at step {self.progress.step}", 10.0)
        losses: dict[str, float] = {}
        for name, shares in chain([("validation", self.feed.validation())], self.feed.sets()):
            batches = _UntilStopped(shares, self.stop_vote, self.stop)
            losses[name] = self.engine.evaluate(batches)
            if batches.stopped_by:
                return batches.stopped_by
        scores = {task.name: score_task(self.scorer, task) for task in self.tasks}
        self.throughput.measure_peak()
        self.recorder.evaluation(self.progress, losses, scores)
        if not math.isfinite(losses["validation"]):
            raise WorkFailed(
                f"run {self.config.run.name} stopped at step {self.progress.step}: validation loss {losses['validation']}. "
                "A lower schedule.peak or a longer schedule.warmup_tokens may help"
            )
        return 0

    def _finish(self) -> int:
        """Save the last checkpoint, close the record, show the results."""
        if not self._ensure_saved():
            raise WorkFailed(
                f"run {self.config.run.name} is trained, but its last checkpoint could not be written to "
                f"{self.saver.checkpoints}: make room and type the command again; it goes on from the checkpoint before"
            )
        self.recorder.finish(self.progress, self.saver, _largest(self.memory.peak_bytes()), self.quantization.bit_widths())
        return 0

    def _preempt(self, stopped_by: int) -> int:
        """Save the current step and log that the run was stopped."""
        saved = self._ensure_saved()
        self.recorder.write(self.progress)
        self._close("preempted")
        outcome = "saved" if saved else "its last checkpoint could NOT be written, only an older one exists"
        log.info(
            "stopped by %s at step %d (%s tokens); %s. The same command goes on",
            *(name_of(stopped_by), self.progress.step, f"{self.progress.tokens:,}", outcome),
        )
        return exit_code(stopped_by, saved=saved)

    def _ensure_saved(self) -> bool:
        """Save the current step unless it is saved already. Returns whether its checkpoint is on disk."""
        self.watchdog.phase("saving", math.inf)  # the saver has its own limit
        if self.saver.finish() and self._saved_step == self.progress.step:
            return True
        return self._save() and self.saver.finish()

    def _save(self) -> bool:
        """Begin to save. Returns whether it has begun."""
        self.watchdog.phase(f"checkpoint at step {self.progress.step}", 10.0)
        self.verification.wait()
        started = self.saver.save(self.engine.state(), self.progress)
        if started:
            self._saved_step = self.progress.step
        return started

    def _close(self, ending: Ending) -> None:
        self.recorder.close(ending, self.progress, self.saver)


class _UntilStopped:
    """Yields batches until any rank gets a signal, which `stopped_by` then is. Every rank stops at the same batch."""

    def __init__(self, batches: Iterator[Batch], vote: DelayedMax, stop: StopRequest) -> None:
        self.stopped_by = 0
        self._batches, self._vote, self._stop = batches, vote, stop

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self._batches):
            if number > 0 and (signal_number := self._vote.exchange(self._stop.signal)):
                self.stopped_by = signal_number
                return
            yield batch


def _largest(value: int | None) -> int | None:
    """The largest of all ranks' values; None if no rank has one. A collective."""
    largest = torch.tensor(-1 if value is None else value, dtype=torch.int64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return None if largest < 0 else int(largest)
