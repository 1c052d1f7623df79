"""Learning rates as pure functions of tokens: a warmup, a trunk, and decays from it.

A training step uses the rate at the tokens seen *after* it, so the first step already moves and the last one is on the floor.
Every schedule is a `Schedule`; the functions below it make the decays of the named ones. Standard library only.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from schedulers.decay import PLAIN, ShapeName, WarmupName, shape_of

Phase = Literal["warmup", "stable", "decay"]


@dataclass(frozen=True)
class Constant:
    """A constant trunk."""

    peak: float

    def __call__(self, tokens: int) -> float:
        """The rate, at any number of tokens."""
        return self.peak


@dataclass(frozen=True)
class PowerLaw:
    """A trunk min(peak, beta a n^b) (Shen et al., Power Scheduler, arXiv 2408.13359, eq. 7).

    n: tokens seen; beta: sequences of 4,096 tokens in a batch, so `batch_tokens` / 4096. The paper's constants, for every size
    of model under muP: peak 0.02, a 4, b -0.51.
    """

    peak: float
    a: float
    b: float
    batch_tokens: int

    def __call__(self, tokens: int) -> float:
        """The rate after `tokens` tokens."""
        return min(self.peak, self.batch_tokens / 4096 * self.a * tokens**self.b) if tokens > 0 else self.peak

    @property
    def bend(self) -> float:
        """Tokens at which the law falls below the peak: (peak / (beta a))^(1/b)."""
        power = math.log(self.peak / (self.batch_tokens / 4096 * self.a)) / self.b
        return math.exp(power) if power < 700 else math.inf


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Warmup to a trunk, then decays that end exactly on `floor`. After every decay but the last comes the trunk again.

    The trunk does not depend on the length of the run: schedules with different decays are equal up to the first decay. A decay
    starts from the rate of the trunk where it begins (Power Scheduler, eq. 8).
    """

    trunk: Callable[[int], float]
    warmup_tokens: int = 0
    warmup_shape: WarmupName = "linear"
    warmup_start: float = 0.0
    """the rate at token zero, as a fraction of the trunk's (Haegele et al. use 0.01)"""
    decays: tuple[tuple[int, int], ...] = ()
    """(first token, last token) of each decay, in order, without overlap"""
    decay_shape: ShapeName = "linear"
    decay_residue: float = 0.01
    """see `schedulers.decay.shape_of`"""
    floor: float = 0.0
    then: "tuple[int, Schedule] | None" = None
    """(tokens, schedule of the steps that begin there or later); the schedule's own tokens count from there"""

    def learning_rate(self, tokens: int) -> float:
        """Learning rate of the step after which `tokens` tokens have been seen. After the last decay it stays on the floor."""
        if self.then is not None and tokens > self.then[0]:
            return self.then[1].learning_rate(tokens - self.then[0])
        if tokens < self.warmup_tokens:
            rising = PLAIN[self.warmup_shape]((self.warmup_tokens - tokens) / self.warmup_tokens)
            return self.trunk(self.warmup_tokens) * (self.warmup_start + (1.0 - self.warmup_start) * rising)
        decay = self._decay(tokens)
        if decay is None:
            return self.trunk(tokens)
        begin, end = decay
        start = self.trunk(begin)
        if tokens >= end:
            return self.floor
        shape = shape_of(self.decay_shape, start=start, floor=self.floor, residue=self.decay_residue)
        return self.floor + (start - self.floor) * max(
            0.0, shape((tokens - begin) / (end - begin))
        )  # rounding errors may go below 0

    def phase(self, tokens: int) -> Phase:
        """The part of the schedule that has the step after which `tokens` tokens have been seen."""
        if self.then is not None and tokens > self.then[0]:
            return self.then[1].phase(tokens - self.then[0])
        if tokens < self.warmup_tokens:
            return "warmup"
        return "stable" if self._decay(tokens) is None else "decay"

    def borders(self) -> list[int]:
        """Tokens after the warmup at which a decay begins or ends: other runs can continue from the weights there."""
        own = {border for decay in self.decays for border in decay if border > self.warmup_tokens}
        later = {self.then[0] + border for border in (0, *self.then[1].borders())} if self.then is not None else set()
        return sorted(own | later)

    def _decay(self, tokens: int) -> tuple[int, int] | None:
        """(first token, last token) of the decay that the step ending at `tokens` is in; all steps after the last are in it."""
        for number, (begin, end) in enumerate(self.decays):
            last = number == len(self.decays) - 1
            if begin < tokens and (tokens <= end or last):
                return begin, end
        return None


def final_decay(total_tokens: int, decay_tokens: int) -> tuple[tuple[int, int], ...]:
    """One decay at the end of a run: WSD (Hu et al., MiniCPM, arXiv 2404.06395, section 4).

    With the shape `cosine`, and a decay that begins where the warmup ends, it is the cosine schedule.
    """
    return ((total_tokens - decay_tokens, total_tokens),) if decay_tokens > 0 else ()


def periodic_decays(ends: Sequence[int], fraction: float) -> tuple[tuple[int, int], ...]:
    """Several decays in one run, each the last `fraction` of its period: WSD-S (Wen et al., arXiv 2410.05192).

    `ends` are the tokens at which the periods end. After a decay the rate jumps straight back to the trunk.
    """
    starts = [0, *ends[:-1]]
    return tuple((end - round(fraction * (end - start)), end) for start, end in zip(starts, ends, strict=True) if fraction > 0)
