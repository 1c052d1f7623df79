"""The console output of a run: log lines, a progress bar, the table at the end."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from scaling.record import RunRecord, StepLine
from train.config import Config
from train.config.resolve.context import context_method
from train.config.resolve.quantization import low_precision_phase
from train.config.resolve.schedule import warnings_of
from train.data.shards import Shards
from train.loop.bit_widths import PICTURE, summary
from train.loop.loss_curve import bigram_loss_of

log = logging.getLogger("foretrain")

LINE_SECONDS = 30.0
"""between two log lines about steps, where there is no bar"""

_console = Console(stderr=True)  # shared by log and progress bar, so that log lines do not break the bar


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _console.print(self.format(record), soft_wrap=True, highlight=False, markup=False)


@contextmanager
def log_to(folder: Path | None) -> Iterator[None]:
    """Send the log to standard error and to a file in `folder`; if `folder` is None, nowhere."""
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if folder is not None:
        folder.mkdir(exist_ok=True)
        handlers = [_ConsoleHandler(), logging.FileHandler(folder / "rank_0000.log", encoding="utf-8")]
        handlers[0].setLevel(logging.INFO)  # debug lines go to the file alone
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.propagate = False
    log.setLevel(logging.DEBUG)
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def announce(config: Config, shards: Shards, steps: int) -> None:
    """Log the model, data, batch and layout of a run that ends at step `steps`."""
    train, batches = config.train, config.batches
    smallest, largest = batches.batch_after(0), batches.batch_before(config.total_tokens)
    sizes = f"{smallest:,} to {largest:,}" if smallest < largest else f"{largest:,}"
    if largest < train.batch_tokens:
        sizes += f" (train.batch_tokens={train.batch_tokens:,} is not reached: train.batch_warmup_tokens is longer)"
    log.info(
        "%s: %s parameters on %s tokens in %s step%s of %s; %s, %s",
        config.run.name,
        f"{config.model.shape.parameters:,}",
        f"{config.total_tokens:,}",
        f"{steps:,}",
        "" if steps == 1 else "s",
        sizes,
        config.parallel.layout,
        train.precision,
    )
    if config.parallel.context > 1:
        method, why = context_method(config)
        message = "each sequence on %d ranks by %s, partition %s (%s)"
        log.info(message, config.parallel.context, method, config.parallel.context_partition, why)
    if (phase := low_precision_phase(config)) is not None:
        share = 1.0 - phase.start / config.total_tokens
        what = config.low_precision.state if config.low_precision is not None else ""
        log.info("%s from %s tokens on, %.1f %% of the run (%s)", what, f"{phase.start:,}", 100 * share, phase.why)
    for warning in warnings_of(config):
        log.warning("%s", warning)
    epochs = config.total_tokens / shards.train.tokens
    log.info("data: %s (%s training tokens, %.2f epochs)", shards.folder, f"{shards.train.tokens:,}", epochs)


Advance = Callable[[StepLine], None]


@contextmanager
def progress(steps: int, first: int, *, shown: bool) -> Iterator[Advance]:
    """Call the result after every step. If `shown`, it draws a bar from step `first` on a terminal, else logs lines."""
    if not shown:
        yield lambda line: None
        return
    if not _console.is_terminal:
        yield _Lines(steps, first)
        return
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console) as bar:
        task = bar.add_task("train", total=steps, completed=first, state="")

        def advance(line: StepLine) -> None:
            bar.update(task, completed=line.step, state=f"loss {line.loss:.3f}  {line.tokens_per_second:,.0f} tokens/s")

        yield advance


class _Lines:
    """A log line every `LINE_SECONDS`, for runs that nobody watches on a terminal."""

    def __init__(self, steps: int, first: int) -> None:
        self._steps, self._step = steps, first
        self._time = time.monotonic()

    def __call__(self, line: StepLine) -> None:
        now = time.monotonic()
        if (seconds := now - self._time) < LINE_SECONDS or line.step <= self._step:
            return
        left = (self._steps - line.step) * seconds / (line.step - self._step)
        self._time, self._step = now, line.step
        memory = f", {line.memory_bytes / 2**20:,.0f} MiB" if line.memory_bytes is not None else ""
        log.info(
            "step %s of %s: loss %.4f, learning rate %.3g, %s tokens/s, %s left%s",
            *(f"{line.step:,}", f"{self._steps:,}", line.loss, line.learning_rate, f"{line.tokens_per_second:,.0f}"),
            *(timedelta(seconds=round(left)), memory),
        )


def show_table(run: Path, record: RunRecord) -> None:
    """Print the results of a finished run."""
    table = Table("", record.name, title=f"{record.parameters:,} parameters, {record.tokens:,} tokens", title_style="bold")
    rows = {
        "validation loss": _number(record.loss, ".4f", " nats/token"),
        "counted bigram": _number(bigram_loss_of(run), ".4f", " nats/token"),
        "bits per byte": _number(record.bits_per_byte, ".4f"),
        **({"weights": f"{record.bits:g} bits over the last {record.qat_tokens:,} tokens"} if record.bits else {}),
        **({"bit widths": summary(record.bit_widths), "": str(run / PICTURE)} if record.bit_widths else {}),
        "speed": _number(record.tokens_per_second, ",.0f", " tokens/s"),
        "MFU": _number(record.mfu and 100 * record.mfu, ".1f", " %")
        + _number(record.mfu_causal and 100 * record.mfu_causal, ".1f", " % causal", prefix=", "),
        "peak memory": _number(record.peak_memory_bytes and record.peak_memory_bytes / 2**20, ",.0f", " MiB per rank"),
        "checkpoints": _checkpoints(record),
        "wall time": f"{record.wall_seconds:,.0f} s",
        "record": str(run / "run.json"),
        "loss curve": str(run / "loss.png"),
    }
    for row, value in rows.items():
        table.add_row(row, value)
    Console().print(table)


def _checkpoints(record: RunRecord) -> str:
    cost = record.checkpoints
    if not cost:
        return "none"
    return (
        f"{cost['saved']:.0f} of {cost['bytes'] / 2**20:,.1f} MiB, {cost['cpu_seconds'] / cost['saved']:.2f} CPU s each; "
        f"the loop waited {cost['stall_seconds']:.2f} s"
    )


def _number(value: float | None, format_spec: str, unit: str = "", prefix: str = "") -> str:
    if value is None:
        return "not measured" if not prefix else ""
    return f"{prefix}{value:{format_spec}}{unit}"
