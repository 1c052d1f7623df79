"""Whether a step was healthy, and what to do if not. Every rank sees the same numbers and decides the same."""

import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from train.config.sections.run import HealthConfig

Verdict = Literal["healthy", "warn", "skipped", "rewind", "stop"]

# A normal distribution's standard deviation over its median absolute deviation: 1 / Phi^-1(3/4).
_SIGMA_PER_DEVIATION = 1.4826


@dataclass(frozen=True)
class Judgement:
    """What to do about a step, and why."""

    verdict: Verdict
    why: str = ""


class Health:
    """Judges steps by their loss, compared with earlier losses, and their gradient norm."""

    def __init__(self, config: HealthConfig) -> None:
        self.config = config
        self._losses: deque[float] = deque(maxlen=config.spike_window)
        self._skipped_in_a_row = 0

    def restart(self, losses: Iterable[float]) -> None:
        """Resume from a checkpoint. `losses`: those of the steps before it, oldest first."""
        self._losses.clear()
        self._losses.extend(losses)
        self._skipped_in_a_row = 0

    def judge(self, loss: float, gradient_norm: float) -> Judgement:
        """Judge a step. If its gradient norm is not finite, the step has changed no weights."""
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            return self._not_finite(f"loss {loss}, gradient norm {gradient_norm}")
        self._skipped_in_a_row = 0
        limit = self._spike_limit()
        if self.config.on_spike != "ignore" and loss > limit:
            verdict: Verdict = "rewind" if self.config.on_spike == "rewind" else "warn"
            # A spike does not enter the window, so it does not raise the limit.
            return Judgement(verdict, f"the loss jumped to {loss:.4f}, above {limit:.4f}")
        self._losses.append(loss)
        return Judgement("healthy")

    def _not_finite(self, why: str) -> Judgement:
        if self.config.on_nonfinite != "skip":
            return Judgement(self.config.on_nonfinite, why)
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row > self.config.patience:
            return Judgement("stop", f"{why}, for {self._skipped_in_a_row} steps in a row")
        return Judgement("skipped", why)

    def _spike_limit(self) -> float:
        """The largest loss that is not a spike: median + threshold x robust standard deviation of the losses before.

        Infinite until the window is full: early in a run the loss changes fast.
        """
        if len(self._losses) < self.config.spike_window:
            return math.inf
        middle = statistics.median(self._losses)
        deviation = statistics.median(abs(loss - middle) for loss in self._losses)
        return middle + self.config.spike_threshold * _SIGMA_PER_DEVIATION * deviation
