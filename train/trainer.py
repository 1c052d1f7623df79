"""One run, from a checked configuration to a closed record."""

import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.profiler import record_function

from parallel.batch import Batch
from parallel.engine.protocol import StepResult
from parallel.mesh import Meshes, World, build_meshes
from scaling.record import EvaluationLine, RunRecord, StepLine
from train import metrics, report
from train.build import build_engine, build_schedule
from train.config import Config
from train.data.loader import TrainLoader, ValidationLoader
from train.data.prepare import prepare
from train.data.shards import Shards, open_shards
from train.errors import RunFailed, UserError
from train.memory import PeakMemory
from train.profile import traced
from train.run_directory import RunDirectory, now
from train.weights import save_weights

log = logging.getLogger("foretrain")


def run(config: Config, world: World) -> int:
    """Carry out one run on `world`. Returns the exit code; messages for the user are rank 0's.

    Raises:
        UserError, RunFailed: on rank 0; the other ranks then return the same exit code in silence.
    """
    if world.rank != 0:
        outcome = json.loads(world.await_value("start"))
        if "exit_code" in outcome:
            return int(outcome["exit_code"])
        try:
            return Trainer(config, world, open_shards(Path(outcome["shards"])), None).train()
        except RuntimeError:  # a collective breaks off when rank 0 leaves; it has said why
            outcome = json.loads(world.await_value("start"))
            if "exit_code" not in outcome:
                raise
            return int(outcome["exit_code"])
    try:
        directory = RunDirectory(config)
        try:
            if directory.finished:
                assert directory.existing is not None
                print(f"{directory.path} is finished.")
                report.show_table(directory.path, directory.existing)
                world.publish("start", json.dumps({"exit_code": 0}))
                return 0
            if directory.existing is not None:
                tokens = f"{directory.existing.tokens:,}"
                print(
                    f"{directory.path} was left unfinished at {tokens} tokens, without a checkpoint: starting over",
                    file=sys.stderr,
                )
            shards = _prepare_data(config)
            world.publish("start", json.dumps({"shards": str(shards.folder.absolute())}))
            try:
                return Trainer(config, world, shards, directory).train()
            except RuntimeError as error:
                if isinstance(error, RunFailed) or not _is_out_of_memory(error):
                    raise
                raise RunFailed(
                    f"{world.device} has not enough memory for this model and batch ({config.model.shape.parameters:,} "
                    f"parameters): lower train.microbatch, raise parallel.shard, or choose a smaller model"
                ) from error
        finally:
            directory.close()
    except (UserError, RunFailed) as error:
        world.publish("start", json.dumps({"exit_code": error.exit_code}))
        raise


def _is_out_of_memory(error: RuntimeError) -> bool:
    # The CPU's allocator has no exception of its own.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _prepare_data(config: Config) -> Shards:
    shards = open_shards(prepare(config.data, config.tokenizer, progress=True))
    if shards.vocab_size > config.model.vocab_size:
        raise UserError(
            f"the tokenizer has {shards.vocab_size} entries, the model model.vocab_size={config.model.vocab_size} rows: "
            f"set model.vocab_size to at least {shards.vocab_size}"
        )
    if shards.train.tokens <= config.train.batch_tokens:
        raise UserError(
            f"the corpus has {shards.train.tokens} training tokens, fewer than one batch of "
            f"train.batch_tokens={config.train.batch_tokens} and a target: add text or lower train.batch_tokens"
        )
    return shards


@dataclass(frozen=True)
class _Pending:
    """A step whose scalars are not read yet: they are read one step later, so that the device never waits for the host."""

    step: int
    learning_rate: float
    result: StepResult


class Trainer:
    """The loop of one rank. `directory` is rank 0's; only it writes."""

    def __init__(self, config: Config, world: World, shards: Shards, directory: RunDirectory | None) -> None:
        self.config, self.world, self.shards, self.directory = config, world, shards, directory
        self.meshes: Meshes = build_meshes(config.parallel.layout, world.device)
        self.schedule = build_schedule(config)
        self.loader = TrainLoader(shards.train, config.train.sequence, config.run.seed)
        self.validation = ValidationLoader(shards.validation, config.train.sequence, config.eval.tokens)
        self.engine = build_engine(config, self.meshes, world.device)
        self.memory = PeakMemory(world.device, self.engine.parameters(), watch=not config.train.compile)
        self.record: RunRecord = metrics.new_record(config, world)
        self.peak_flops = metrics.total_peak_flops(world.device, config.train.precision)
        self.step_seconds: list[float] = []
        self.started = time.perf_counter()
        self._last_read = self.started

    def train(self) -> int:
        """Train to the end. Returns exit code 0.

        Raises:
            RunFailed: the loss stopped being finite, or the disk failed.
        """
        try:
            if self.directory is not None:
                self.directory.begin(self.record, self.shards.folder)
            with report.log_to(self.directory.path if self.directory else None):
                report.announce(self.config, self.record, self.shards)
                self._loop()
                self._finish()
        except BaseException as error:
            with suppress(OSError):  # what failed may be the very disk
                self._close("failed")
            if isinstance(error, OSError):
                raise RunFailed(f"run {self.config.run.name} failed: {error}") from error
            raise
        return 0

    def _loop(self) -> None:
        config, batch_tokens = self.config, self.config.train.batch_tokens
        every = config.eval.every_tokens
        asynchronous = self.world.device.type != "cpu"
        pending: _Pending | None = None
        trace = Path(config.run.dir).expanduser() / config.run.name / "trace" if config.train.profile else None
        with (
            report.progress(config.steps, shown=self.directory is not None) as advance,
            traced(trace, self.world.rank) as traced_step,
        ):
            self._last_read = time.perf_counter()
            for step in range(1, config.steps + 1):
                tokens = step * batch_tokens
                learning_rate = self.schedule.learning_rate(tokens)
                with record_function("batches"):
                    batches = self._batches(step)
                with self.memory.watching(step - 1) or nullcontext():
                    result = self.engine.train_step(batches, learning_rate=learning_rate, tokens=batch_tokens)
                traced_step()
                if pending is not None:
                    advance(self._read(pending))
                pending = _Pending(step, learning_rate, result)
                evaluates = step == config.steps or (every is not None and tokens // every > (tokens - batch_tokens) // every)
                if evaluates or not asynchronous:
                    advance(self._read(pending))
                    pending = None
                if evaluates:
                    self._evaluate(step)
                    self._last_read = time.perf_counter()

    def _batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step: a slice of the step's global sample numbers."""
        microbatch, accumulation = self.config.train.microbatch, self.config.accumulation
        ranks, rank = self.config.parallel.layout.data_parallel, self.meshes.data_rank
        first = (step - 1) * ranks * accumulation * microbatch
        starts = [first + (index * ranks + rank) * microbatch for index in range(accumulation)]
        return [self.loader.batch(range(start, start + microbatch)) for start in starts]

    def _read(self, pending: _Pending) -> StepLine:
        """Wait for a step's scalars, write its line, refuse to go on from a loss that is not finite."""
        loss, gradient_norm = pending.result.loss.item(), pending.result.gradient_norm.item()
        seconds = time.perf_counter() - self._last_read
        self._last_read += seconds
        self.step_seconds.append(seconds)
        batch_tokens = self.config.train.batch_tokens
        tokens = pending.step * batch_tokens
        line = StepLine(
            step=pending.step,
            tokens=tokens,
            loss=loss,
            learning_rate=pending.learning_rate,
            gradient_norm=gradient_norm,
            phase=self.schedule.phase(tokens),
            tokens_per_second=batch_tokens / seconds,
            step_seconds=seconds,
            memory_bytes=self.memory.peak_bytes(),
        )
        self.record.tokens = self.record.fp_tokens = tokens
        if self.directory is not None:
            self.directory.append(line)
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            raise RunFailed(
                f"run {self.config.run.name} diverged and was stopped at step {pending.step} ({tokens} tokens): loss {loss}, "
                f"gradient norm {gradient_norm}. A lower schedule.peak or a longer schedule.warmup_tokens may help"
            )
        return line

    def _evaluate(self, step: int) -> None:
        loss = self.engine.evaluate(self._validation_batches())
        validation, record = self.shards.validation, self.record
        self.peak_flops = metrics.total_peak_flops(self.world.device, self.config.train.precision, known=self.peak_flops)
        record.loss, record.losses = loss, {"validation": loss}
        record.bits_per_byte = loss / math.log(2) * validation.tokens / validation.bytes
        metrics.update(record, self.config, self.step_seconds, self.peak_flops, time.perf_counter() - self.started)
        log.info("step %d: validation loss %.4f, %.4f bits per byte", step, loss, record.bits_per_byte)
        if self.directory is not None:
            tokens = step * self.config.train.batch_tokens
            self.directory.append(EvaluationLine(step=step, tokens=tokens, validation=record.losses))
            self.directory.write(record)
        if not math.isfinite(loss):
            raise RunFailed(
                f"run {self.config.run.name} stopped at step {step}: validation loss {loss}. "
                "A lower schedule.peak or a longer schedule.warmup_tokens may help"
            )

    def _validation_batches(self) -> Iterator[Batch]:
        """This rank's share of the validation windows. Every rank gets equally many; beyond the last they count nothing."""
        microbatch = self.config.train.microbatch
        ranks, rank = self.config.parallel.layout.data_parallel, self.meshes.data_rank
        for first in range(0, self.validation.num_samples, microbatch * ranks):
            start = first + rank * microbatch
            yield self.validation.batch(range(start, start + microbatch))

    def _finish(self) -> None:
        """Save the weights, close the record, show what came out."""
        folder = self.directory.path if self.directory is not None else None
        save_weights(self.engine.full_parameters(), folder, step=self.config.steps, tokens=self.config.total_tokens)
        self.record.peak_memory_bytes = metrics.largest(self.memory.peak_bytes())
        if self.directory is None:
            return
        report.draw_loss(self.directory.path)
        self._close("finished")
        report.show_table(self.directory.path, self.record)

    def _close(self, status: Literal["finished", "failed"]) -> None:
        if self.directory is not None:
            self.record.status, self.record.ended = status, now()
            self.record.wall_seconds = time.perf_counter() - self.started
            self.directory.write(self.record)
