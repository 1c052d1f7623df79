"""What a plan leaves open or stretches: the learning rate, and how often the text is read."""

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.plan.choice import Choice

MOST_EPOCHS = 4.0
"""Up to about four epochs, repeated text is worth almost as much as new text (Muennighoff et al., arXiv 2305.16264)."""


def remarks(optimum: Choice, context: Mapping[str, Any]) -> Iterator[str]:
    """A warning each, for a plan whose fitted runs left `context` (`train_command.common_context`)."""
    config = context.get("config")
    if config is None:
        return
    if optimum.learning_rate is None and not config.get("optimizer.mup"):
        peak = config.get("schedule.peak")
        runs = f"the fitted runs had schedule.peak={peak:g}" if peak is not None else "the fitted runs had several"
        yield (
            f"no learning rate is planned, and the best one falls with the size: {runs}. Fit a law of learning rates too, "
            "train with optimizer.mup=true, or find one by short runs of this size"
        )
    corpus = context.get("corpus_tokens")
    if corpus and optimum.tokens > MOST_EPOCHS * corpus:
        yield (
            f"{optimum.tokens / corpus:,.0f} epochs of the runs' corpus of {corpus:,} tokens: beyond about {MOST_EPOCHS:g}, "
            "repeated text is worth less and less (arXiv 2305.16264), which no law here knows; add text"
        )
