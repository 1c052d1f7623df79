"""This rank's micro-batches for training and validation."""

from collections.abc import Iterator

from parallel.batch import Batch
from train.config import Config
from train.data.loader import TrainLoader, ValidationLoader
from train.data.shards import Shards
from train.loop.course import PlannedStep


class Feed:
    """Reads the micro-batches of one data-parallel rank: its share of the global sample numbers."""

    def __init__(self, config: Config, shards: Shards, data_rank: int) -> None:
        self._train = TrainLoader(shards.train, config.train.sequence, config.run.seed)
        self._validation = ValidationLoader(shards.validation, config.train.sequence, config.eval.tokens)
        self._rows, self._pass_tokens = config.train.microbatch, config.pass_tokens
        self._ranks, self._rank = config.parallel.layout.data_parallel, data_rank

    def step(self, step: PlannedStep) -> list[Batch]:
        """The micro-batches of a step."""
        passes = step.batch_tokens // self._pass_tokens
        starts = [step.first_sample + (index * self._ranks + self._rank) * self._rows for index in range(passes)]
        return [self._train.batch(range(start, start + self._rows)) for start in starts]

    def validation(self) -> Iterator[Batch]:
        """The micro-batches of an evaluation, equally many on every rank."""
        return self._validation.share(self._rank, self._ranks, self._rows)
