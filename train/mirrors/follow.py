"""Which lines of a record a mirror may have: those that no restart can undo.

A run that is killed or rewound goes back to a checkpoint, and the lines after it are written anew. What wandb and TensorBoard
have cannot be taken back. So a mirror gets a line once a complete checkpoint holds its step; then the lines that it has are
always the first ones of `metrics.jsonl`, and their number is all that is to be remembered.
"""

from collections.abc import Iterator
from pathlib import Path

from scaling.record import EvaluationLine, StepLine, read_metrics
from train.checkpoint.manifest import NAME as MANIFEST
from train.checkpoint.manifest import newest_first, step_of

Line = StepLine | EvaluationLine


class Follower:
    """Follows the metrics of a run from its line `sent` on."""

    def __init__(self, run: Path, sent: int) -> None:
        self._run, self._sent = run, sent
        self._checkpoint = self._size = -1

    def new_lines(self) -> Iterator[tuple[int, Line]]:
        """The numbers (from 0) and lines that have become safe since the last call."""
        checkpoint = self._newest_checkpoint()
        if checkpoint <= self._checkpoint and not self._evaluated():
            return
        self._checkpoint = max(checkpoint, self._checkpoint)
        try:
            for number, line in enumerate(read_metrics(self._run, unreadable=[])):
                if line.step > self._checkpoint:
                    return
                if number >= self._sent:
                    yield number, line
                    self._sent = number + 1
        except OSError:  # it is being replaced, or not there yet
            return

    def _newest_checkpoint(self) -> int:
        complete = (folder for folder in newest_first(self._run / "checkpoints") if (folder / MANIFEST).exists())
        return max((step_of(folder) or 0 for folder in complete), default=-1)

    def _evaluated(self) -> bool:
        """Whether the file has grown: the evaluation of a step comes after its checkpoint."""
        try:
            size = (self._run / "metrics.jsonl").stat().st_size
        except OSError:
            return False
        grown, self._size = size != self._size, size
        return grown
