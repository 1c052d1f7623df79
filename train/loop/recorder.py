"""Writes a run's record, a line of metrics per step and per evaluation, and the manifest of every checkpoint."""

import logging
import time
from typing import Literal

from common.words import timestamp
from parallel.mesh import World
from scaling.record import EvaluationLine, StepLine, read_metrics
from train.build.quantization import Quantization
from train.checkpoint.manifest import Manifest, Progress
from train.checkpoint.saver import Saver
from train.checkpoint.verify import Verified
from train.config import Config
from train.data.shards import Shards
from train.folder.directory import RunDirectory
from train.loop import console, prediction
from train.loop.bit_widths import draw_bit_widths, histograms
from train.loop.loss_curve import draw_loss
from train.loop.new_record import new_record
from train.loop.throughput import Throughput
from train.mirrors.start import Mirrors
from train.scoring.tasks import TaskScore

log = logging.getLogger("foretrain")

Ending = Literal["finished", "preempted", "failed"]


class Recorder:
    """The recorder of a rank above 0. It writes nothing, so that the loop is the same on every rank."""

    def begin(self, resumed: Verified | None, progress: Progress, last_step: int) -> None:
        """The run begins, or resumes from a checkpoint. It will end at step `last_step`."""

    def history(self) -> tuple[list[float], EvaluationLine | None]:
        """(the losses that the next step's loss is compared with, the newest evaluation) up to now."""
        return [], None

    def step(self, line: StepLine) -> None:
        """A step is done."""

    def skipped(self) -> None:
        """A step was skipped: it has changed nothing."""

    def rewound(self, progress: Progress) -> None:
        """The run has gone back to `progress`."""

    def evaluated(self, losses: dict[str, float], errors: dict[str, float]) -> None:
        """The newest losses of validation and sets and errors of tasks are known, from this process or an earlier one."""

    def evaluation(self, progress: Progress, losses: dict[str, float], scores: dict[str, TaskScore]) -> None:
        """An evaluation is done."""

    def write(self, progress: Progress) -> None:
        """Bring the record on disk up to date."""

    def finish(
        self, progress: Progress, saver: Saver, peak_memory_bytes: int | None, bit_widths: dict[str, list[float]]
    ) -> None:
        """The run has done all its steps: close the record, show the results. `bit_widths`: what the blocks of every matrix
        have learned, by its name."""

    def close(self, ending: Ending, progress: Progress, saver: Saver) -> None:
        """This process stops training, whether the run is finished or not."""

    def manifest(self, progress: Progress, files: dict[str, tuple[int, str]]) -> Manifest:
        """The manifest of a checkpoint. Called on rank 0 only."""
        raise AssertionError("only rank 0 completes a checkpoint")


class RunRecorder(Recorder):
    """The recorder of rank 0."""

    def __init__(
        self,
        config: Config,
        world: World,
        shards: Shards,
        directory: RunDirectory,
        quantization: Quantization,
        throughput: Throughput,
    ) -> None:
        self.config, self.world, self.shards, self.directory = config, world, shards, directory
        self.quantization, self.throughput = quantization, throughput
        self.record = new_record(config, world)
        self.record.corpus, self.record.tokenizer = shards.folder.name, shards.tokenizer_sha256
        self._started = time.perf_counter()
        self._mirrors: Mirrors | None = None
        self._earlier_seconds = 0.0  # wall time of the run's earlier processes

    def begin(self, resumed: Verified | None, progress: Progress, last_step: int) -> None:
        """Load the record of earlier processes, write the new one, log what will run."""
        for change in self.directory.changes:
            log.info("%s", change)
        if (damage := self.directory.damage) is not None:
            log.warning("%s; rebuilt from checkpoint and metrics, what was there is kept as aside_run.json", damage)
        earlier = self.directory.existing
        if resumed is not None:
            self.record.resumed_from = str(resumed.folder)
            if earlier is not None:
                self.record.started, self._earlier_seconds = earlier.started, earlier.wall_seconds
                self.record.skipped_steps = earlier.skipped_steps
        self._count(progress)
        self._measure()
        self.directory.begin(self.record, self.shards.folder, progress.step)
        self._mirrors = Mirrors(self.directory.path, self.config.logger.mirrors)
        self._restore_measurements()
        console.announce(self.config, self.shards, last_step)
        self.record.predicted = prediction.announce(
            self.config, self.record.device, self.throughput.peak_flops_per_rank(self.world.size)
        )

    def _restore_measurements(self) -> None:
        """What killed processes measured and did not come to write: time, speed and memory, from the metrics."""
        lines = [line for line in read_metrics(self.directory.path) if isinstance(line, StepLine)]
        self._earlier_seconds = max(self._earlier_seconds, sum(line.step_seconds or 0.0 for line in lines))
        speeds = sorted(line.tokens_per_second for line in lines if line.tokens_per_second is not None)
        self.record.tokens_per_second = speeds[(len(speeds) - 1) // 2] if speeds else None
        self.record.peak_memory_bytes = max(
            (line.memory_bytes for line in lines if line.memory_bytes is not None), default=None
        )

    def history(self) -> tuple[list[float], EvaluationLine | None]:
        """From the metrics on disk. Losses in another precision are left out: quantization raises the loss."""
        losses: list[float] = []
        evaluation: EvaluationLine | None = None
        phase = self.quantization.phase
        for line in read_metrics(self.directory.path):
            if isinstance(line, EvaluationLine):
                evaluation = line
            elif line.loss is not None and (phase is None or phase.holds(line.tokens) == self.quantization.active):
                losses.append(line.loss)
        return losses[-self.config.health.spike_window :], evaluation

    def step(self, line: StepLine) -> None:
        """Append the line of a step."""
        self.directory.append(line)

    def skipped(self) -> None:
        """Count a skipped step."""
        self.record.skipped_steps += 1

    def rewound(self, progress: Progress) -> None:
        """Drop the lines of the steps that were undone."""
        self.directory.rewind(progress.step)
        self._count(progress)

    def evaluated(self, losses: dict[str, float], errors: dict[str, float]) -> None:
        """Put the newest losses and errors into the record."""
        record, streams = self.record, {"validation": self.shards.validation, **self.shards.sets}
        record.loss, record.losses, record.errors = losses["validation"], losses, errors
        # A set may have been taken out of the configuration since an earlier process measured it.
        record.set_bits_per_byte = {name: streams[name].bits_per_byte(loss) for name, loss in losses.items() if name in streams}
        record.bits_per_byte = record.set_bits_per_byte["validation"]

    def evaluation(self, progress: Progress, losses: dict[str, float], scores: dict[str, TaskScore]) -> None:
        """Append the line of an evaluation, log it, and rewrite the record."""
        self.evaluated(losses, {name: 1.0 - score.accuracy for name, score in scores.items()})
        bits_per_byte = self.record.set_bits_per_byte
        for name, loss in losses.items():
            log.info("step %d: %s loss %.4f, %.4f bits per byte", progress.step, name, loss, bits_per_byte[name])
        for name, score in scores.items():
            log.info("step %d: %s: accuracy %.4f +- %.4f", progress.step, name, score.accuracy, score.standard_error)
        self.record.standard_errors = {name: score.standard_error for name, score in scores.items()}
        line = EvaluationLine(
            step=progress.step,
            tokens=progress.tokens,
            validation=losses,
            errors=self.record.errors,
            bits_per_byte=bits_per_byte,
        )
        self.directory.append(line)
        self.write(progress)

    def write(self, progress: Progress) -> None:
        """Rewrite the record. If the disk is full, the old record stays."""
        self._count(progress)
        self._measure()
        try:
            self.directory.write(self.record)
        except OSError as error:
            log.warning("step %d: the record cannot be written: %s", progress.step, error)

    def finish(
        self, progress: Progress, saver: Saver, peak_memory_bytes: int | None, bit_widths: dict[str, list[float]]
    ) -> None:
        """Draw the pictures, close the record, show the table."""
        self.record.peak_memory_bytes = peak_memory_bytes or self.record.peak_memory_bytes
        self.record.bit_widths = histograms(bit_widths)
        draw_bit_widths(self.directory.path, self.record.bit_widths)
        prediction.compare(self.record.predicted, peak_memory_bytes, self.throughput.tokens_per_second)
        self.directory.metrics.flush()
        draw_loss(self.directory.path, self.config)
        self.close("finished", progress, saver)
        console.show_table(self.directory.path, self.record)

    def close(self, ending: Ending, progress: Progress, saver: Saver) -> None:
        """Write how the run ended. If this process never began to write the run, its record stays unchanged."""
        record = self.record
        record.checkpoints = saver.cost()
        self._count(progress)
        if self.directory.begun:
            self._measure()
            record.status, record.ended = ending, timestamp()
            self.directory.write(record)
        if self._mirrors is not None:
            self.directory.metrics.flush()
            self._mirrors.close()

    def manifest(self, progress: Progress, files: dict[str, tuple[int, str]]) -> Manifest:
        """Runs on the saver's thread. Also syncs the metrics, so that they are as durable as the checkpoint."""
        self.directory.metrics.sync()
        return Manifest(
            progress=progress,
            config_hash=self.record.config_hash,
            layout=self.record.layout,
            world_size=self.world.size,
            precision=self.record.precision,
            versions=self.record.versions,
            saved=timestamp(),
            files=files,
        )

    def _count(self, progress: Progress) -> None:
        record, phase = self.record, self.quantization.phase
        record.tokens = progress.tokens
        # A method that leaves the weights in full precision, such as noise, counts as that.
        record.fp_tokens = record.tokens if phase is None or record.bits is None else min(record.tokens, phase.start)
        record.qat_tokens = record.tokens - record.fp_tokens
        record.skipped_samples = [list(pair) for pair in progress.skipped]

    def _measure(self) -> None:
        record, shape, sequence = self.record, self.config.model.shape, self.config.train.sequence
        record.flops = 6.0 * record.parameters * record.tokens
        record.tokens_per_parameter = record.tokens / record.parameters
        record.wall_seconds = self._wall_seconds()
        if (speed := self.throughput.tokens_per_second) is not None:
            record.tokens_per_second = speed
            record.mfu = self.throughput.mfu(shape.flops_per_token(sequence))
            record.mfu_causal = self.throughput.mfu(shape.flops_per_token(sequence, causal=True))

    def _wall_seconds(self) -> float:
        return self._earlier_seconds + time.perf_counter() - self._started
