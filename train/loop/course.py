"""When a run saves, evaluates and ends. This depends on tokens alone, so it is equal on all ranks and after a restart."""

from dataclasses import dataclass

from train.checkpoint.manifest import Progress
from train.config import Config, schedule_of
from train.config.resolve.quantization import low_precision_phase


@dataclass(frozen=True)
class PlannedStep:
    """A step to be done."""

    first_sample: int
    """the global number of its first sample"""
    batch_tokens: int
    learning_rate: float
    after: Progress
    """progress of the run after this step"""


class Course:
    """The steps of a run, and at which of them it saves, evaluates and ends."""

    def __init__(self, config: Config) -> None:
        self.schedule, self.batches, self.total_tokens = schedule_of(config), config.batches, config.total_tokens
        self._sequence = config.train.sequence
        self._save_every, self._evaluate_every = config.checkpoint_every_tokens, config.evaluate_every_tokens
        self._keep_every = config.checkpoint.keep_every
        phase = low_precision_phase(config)
        self._borders = [*self.schedule.borders(), *([phase.start] if phase is not None and phase.start > 0 else [])]

    def step_after(self, progress: Progress) -> PlannedStep:
        """The next step. Its learning rate is the schedule's at the tokens after the step."""
        batch_tokens = self.batches.batch_after(progress.tokens)
        after = progress.after(batch_tokens, batch_tokens // self._sequence)
        return PlannedStep(progress.samples, batch_tokens, self.schedule.learning_rate(after.tokens), after)

    def at_end(self, progress: Progress) -> bool:
        """Whether all steps are done."""
        return progress.tokens >= self.total_tokens

    def last_step(self, progress: Progress) -> int:
        """The number of the last step. Counted from here: on a branch, earlier steps may have had other batch sizes."""
        return progress.step + self.batches.steps(self.total_tokens, progress.tokens)

    def saves(self, progress: Progress) -> bool:
        """Whether a checkpoint is due. The last one, at the end of the run, is not planned here."""
        due = self.is_border(progress.tokens) or self._crosses(progress, self._save_every)
        return due and not self.at_end(progress)

    def evaluates(self, progress: Progress) -> bool:
        """Whether an evaluation is due."""
        return progress.step > 0 and (self.at_end(progress) or self._crosses(progress, self._evaluate_every))

    def pauses(self, progress: Progress) -> bool:
        """Whether the next action needs to know that the step was healthy: saving, evaluating or ending the run."""
        return self.at_end(progress) or self.saves(progress) or self.evaluates(progress)

    def is_border(self, tokens: int) -> bool:
        """Whether a step that ends at `tokens` is the last before a border: a phase of the schedule or low precision begins."""
        after = tokens + self.batches.batch_after(tokens)
        return any(tokens <= border < after for border in self._borders)

    def is_kept_for_good(self, older: int, tokens: int) -> bool:
        """Whether the checkpoint at `tokens` is never removed. `older`: tokens of the checkpoint before it."""
        every = self._keep_every and self._keep_every * self._save_every
        return self.is_border(tokens) or (every is not None and tokens // every > older // every)

    def _crosses(self, progress: Progress, every: int) -> bool:
        """Whether the last step passed a multiple of `every` tokens."""
        before = progress.tokens - self.batches.batch_before(progress.tokens)
        return progress.tokens // every > before // every
