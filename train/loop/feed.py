"""This rank's micro-batches for training and validation."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from parallel.batch import Batch
from train.config import Config
from train.data.loader import TrainLoader, ValidationLoader
from train.data.shards import Shards
from train.loop.course import PlannedStep


class Feed:
    """Reads the micro-batches of one data-parallel rank: its share of the global sample numbers.

    A thread reads the next step's while the current one computes.
    """

    def __init__(self, config: Config, shards: Shards, data_rank: int) -> None:
        self._train = TrainLoader(shards.train, config.train.sequence, config.run.seed)
        self._validation = ValidationLoader(shards.validation, config.train.sequence, config.eval.tokens)
        self._sets = {
            name: ValidationLoader(stream, config.train.sequence, config.eval.tokens) for name, stream in shards.sets.items()
        }
        self._rows, self._pass_tokens = config.train.microbatch, config.pass_tokens
        self._ranks, self._rank = config.parallel.layout.data_parallel, data_rank
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: dict[PlannedStep, Future[list[Batch]]] = {}

    def step(self, step: PlannedStep, following: PlannedStep | None) -> list[Batch]:
        """The micro-batches of a step. Those of the `following` one are read meanwhile."""
        ahead = self._ahead.pop(step, None)
        batches = self._read(step) if ahead is None else ahead.result()
        # After a rewind the step read ahead is not the one that follows.
        self._ahead = {} if following is None else {following: self._thread.submit(self._read, following)}
        return batches

    def _read(self, step: PlannedStep) -> list[Batch]:
        passes = step.batch_tokens // self._pass_tokens
        starts = [step.first_sample + (index * self._ranks + self._rank) * self._rows for index in range(passes)]
        return [self._train.batch(range(start, start + self._rows)) for start in starts]

    def validation(self) -> Iterator[Batch]:
        """The micro-batches of an evaluation, equally many on every rank."""
        return self._validation.share(self._rank, self._ranks, self._rows)

    def sets(self) -> Iterator[tuple[str, Iterator[Batch]]]:
        """The same of every set of `eval.sets`, by its name."""
        for name, loader in self._sets.items():
            yield name, loader.share(self._rank, self._ranks, self._rows)
