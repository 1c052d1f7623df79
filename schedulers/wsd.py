"""Warmup, stable, decay: a learning rate as a pure function of tokens."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """Linear warmup to `peak`, constant, then linear decay that reaches `floor` exactly at `total_tokens`.

    A training step asks for the tokens seen *after* it, so that the first step already moves and the last ends on the floor.
    Source: Hu et al., MiniCPM (arXiv 2404.06395), section 4; linear decay as in Haegele et al. (arXiv 2405.18392).
    """

    peak: float
    floor: float
    warmup_tokens: int
    decay_tokens: int
    total_tokens: int

    def learning_rate(self, tokens: int) -> float:
        """Learning rate of the step after which `tokens` tokens have been seen."""
        if tokens < self.warmup_tokens:
            return self.peak * tokens / self.warmup_tokens
        remaining = self._remaining(tokens)
        if remaining >= self.decay_tokens:
            return self.peak
        return self.floor + (self.peak - self.floor) * remaining / self.decay_tokens

    def phase(self, tokens: int) -> str:
        """Which part of the schedule that step is in: warmup, stable or decay."""
        if tokens < self.warmup_tokens:
            return "warmup"
        return "stable" if self._remaining(tokens) >= self.decay_tokens else "decay"

    def _remaining(self, tokens: int) -> int:
        return max(0, self.total_tokens - tokens)  # beyond the end it stays as it was at the end
