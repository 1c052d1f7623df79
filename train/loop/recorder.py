"""What a run writes about itself: its record, a line per step and per evaluation, the manifest of every checkpoint."""

import logging
import math
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
from train.loop import console
from train.loop.loss_curve import draw_loss
from train.loop.new_record import new_record
from train.loop.throughput import Throughput

log = logging.getLogger("foretrain")

Ending = Literal["finished", "preempted", "failed"]


class Recorder:
    """The recorder of a rank above 0, which writes nothing: the loop is the same on every rank."""

    def begin(self, resumed: Verified | None, progress: Progress, last_step: int) -> None:
        """The run begins, or goes on from a checkpoint, and is to end at step `last_step`."""

    def history(self, progress: Progress) -> tuple[list[float], EvaluationLine | None]:
        """(losses, newest evaluation) up to where the run stands: only those losses that the next step's compares with."""
        return [], None

    def step(self, line: StepLine) -> None:
        """A step is done."""

    def skipped(self) -> None:
        """A step has changed nothing."""

    def rewound(self, progress: Progress) -> None:
        """The run has gone back."""

    def evaluated(self, loss: float) -> None:
        """The newest validation loss, whether it was measured now or before."""

    def evaluation(self, progress: Progress, loss: float) -> None:
        """An evaluation is done."""

    def write(self, progress: Progress) -> None:
        """Bring the record on disk up to date."""

    def finish(self, progress: Progress, saver: Saver, peak_memory_bytes: int | None) -> None:
        """The run is at its end: close the record, show what came out."""

    def close(self, ending: Ending, progress: Progress, saver: Saver) -> None:
        """The run ends, whether it is at its end or not."""

    def manifest(self, progress: Progress, files: dict[str, tuple[int, str]]) -> Manifest:
        """The manifest of a checkpoint; asked on rank 0 alone."""
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
        self._started = time.perf_counter()
        self._earlier_seconds = 0.0  # wall time of the processes before this one

    def begin(self, resumed: Verified | None, progress: Progress, last_step: int) -> None:
        """Take over what earlier processes have recorded, write the record, say what is about to run."""
        for change in self.directory.changes:
            log.info("%s", change)
        earlier = self.directory.existing
        if resumed is not None:
            self.record.resumed_from = str(resumed.folder)
            if earlier is not None:
                self.record.started, self._earlier_seconds = earlier.started, earlier.wall_seconds
                self.record.skipped_steps = earlier.skipped_steps
        self._count(progress)
        self.directory.begin(self.record, self.shards.folder, progress.step)
        console.announce(self.config, self.shards, last_step)

    def history(self, progress: Progress) -> tuple[list[float], EvaluationLine | None]:
        """From the metrics on disk. A loss in another precision is none to compare with: quantized weights cost loss."""
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
        """Drop the lines of the steps that the run has gone back over."""
        self.directory.rewind(progress.step)
        self._count(progress)

    def evaluated(self, loss: float) -> None:
        """Put the newest validation loss into the record."""
        validation, record = self.shards.validation, self.record
        record.loss, record.losses = loss, {"validation": loss}
        record.bits_per_byte = loss / math.log(2) * validation.tokens / validation.bytes

    def evaluation(self, progress: Progress, loss: float) -> None:
        """Append the line of an evaluation, say it, and rewrite the record."""
        self.evaluated(loss)
        log.info("step %d: validation loss %.4f, %.4f bits per byte", progress.step, loss, self.record.bits_per_byte)
        self.directory.append(EvaluationLine(step=progress.step, tokens=progress.tokens, validation=self.record.losses))
        self.write(progress)

    def write(self, progress: Progress) -> None:
        """Rewrite the record; a disk that is full for now keeps the old one."""
        self._count(progress)
        self._measure()
        try:
            self.directory.write(self.record)
        except OSError as error:
            log.warning("step %d: the record cannot be written: %s", progress.step, error)

    def finish(self, progress: Progress, saver: Saver, peak_memory_bytes: int | None) -> None:
        """Close the record, draw the loss, show the table."""
        self.record.peak_memory_bytes = peak_memory_bytes
        self.directory.metrics.flush()
        draw_loss(self.directory.path)
        self.close("finished", progress, saver)
        console.show_table(self.directory.path, self.record)

    def close(self, ending: Ending, progress: Progress, saver: Saver) -> None:
        """Write how the run has ended. A run that never began keeps the record it has."""
        record = self.record
        record.checkpoints = saver.cost()
        self._count(progress)
        if self.directory.begun:
            record.status, record.ended = ending, timestamp()
            record.wall_seconds = self._wall_seconds()
            self.directory.write(record)

    def manifest(self, progress: Progress, files: dict[str, tuple[int, str]]) -> Manifest:
        """Runs on the saver's thread. The metrics up to a checkpoint are as durable as the checkpoint."""
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
        record.fp_tokens = record.tokens if phase is None else min(record.tokens, phase.start)
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
