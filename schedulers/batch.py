"""Batch-size warmup: tokens per optimizer step as a pure function of tokens. Standard library only."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Stage:
    """Consecutive steps with one batch size."""

    step: int
    """steps before this stage"""
    tokens: int
    """tokens before this stage"""
    batch_tokens: int


@dataclass(frozen=True, kw_only=True)
class BatchWarmup:
    """Batches grow from `start` tokens to `full`, in equal increments of `start`, over the first `warmup_tokens` tokens.

    A step that begins at n tokens has start x (1 + floor(n / warmup_tokens x (full / start - 1))) tokens, at most `full`: the
    linear ramp of Megatron-LM (--rampup-batch-size), on the token axis. It does not depend on rank, world size or
    micro-batch, so batches and losses are the same on every layout. With `warmup_tokens` 0 every batch is `full`.
    """

    full: int
    start: int
    warmup_tokens: int

    def __post_init__(self) -> None:
        assert 0 < self.start <= self.full
        assert self.full % self.start == 0

    @cached_property
    def stages(self) -> list[Stage]:
        """The batch sizes in order. A size ends before the first step that begins at or after its border."""
        stages: list[Stage] = []
        num_sizes = self.full // self.start
        step = tokens = 0
        for number in range(1, num_sizes):
            border = -(-number * self.warmup_tokens // (num_sizes - 1))  # where size number + 1 begins
            steps = -(-(border - tokens) // (number * self.start))
            if steps > 0:
                stages.append(Stage(step, tokens, number * self.start))
                step, tokens = step + steps, tokens + steps * number * self.start
        return [*stages, Stage(step, tokens, self.full)]

    def batch_after(self, tokens: int) -> int:
        """Tokens of the step that begins when `tokens` tokens have been seen."""
        return self.stages[bisect_right(self._tokens, tokens) - 1].batch_tokens

    def batch_before(self, tokens: int) -> int:
        """Tokens of the step that ended at `tokens` tokens (more than 0)."""
        return self.stages[bisect_left(self._tokens, tokens) - 1].batch_tokens

    def steps(self, tokens: int, begin: int = 0) -> int:
        """Steps from `begin` tokens on until at least `tokens` tokens have been seen.

        `begin` need not be a multiple of these batches: the steps before may have had others.
        """
        steps = 0
        for stage, border in zip(self.stages, [*self._tokens[1:], tokens], strict=True):
            if (missing := min(border, tokens) - begin) > 0:
                more = -(-missing // stage.batch_tokens)
                steps, begin = steps + more, begin + more * stage.batch_tokens
        return steps

    def tokens(self, steps: int) -> int:
        """Tokens seen after that many steps."""
        stage = self.stages[bisect_right([stage.step for stage in self.stages], steps) - 1]
        return stage.tokens + (steps - stage.step) * stage.batch_tokens

    @cached_property
    def _tokens(self) -> list[int]:
        return [stage.tokens for stage in self.stages]
