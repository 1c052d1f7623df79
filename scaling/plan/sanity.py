"""What a plan leaves open or stretches: the learning rate, and how often the text is read."""

from collections.abc import Iterator, Mapping
from typing import Any

from common.errors import UserError
from scaling.fit.result import Fit
from scaling.plan.choice import Choice

MOST_COMPUTE = 1e4
"""Forecasts from runs with a ten-thousandth of the compute have held (OpenAI, arXiv 2303.08774, section 3.1); none is known
from less."""

MOST_EPOCHS = 4.0
"""Up to about four epochs, repeated text is worth almost as much as new text (Muennighoff et al., arXiv 2305.16264)."""


def require_trust(fit: Fit, flops: float) -> None:
    """Refuse a plan for more than `MOST_COMPUTE` times the compute of the largest fitted run.

    Raises:
        UserError: it is; the message has the word that insists.
    """
    runs = fit.runs if fit.chain is None else fit.chain.runs
    if not {"parameters", "tokens"} <= set(runs.columns):
        return
    largest = float((6 * runs["parameters"] * runs["tokens"]).max())
    if flops > MOST_COMPUTE * largest > 0:
        raise UserError(
            f"{flops:.3g} FLOPs are {flops / largest:,.0f} times those of the largest fitted run ({largest:.3g}): beyond "
            f"{MOST_COMPUTE:,.0f} times no forecast of a law is known to have held\ntrain larger runs first, such as of "
            f"{flops / MOST_COMPUTE:.2g} FLOPs, or type --insist to see the plan all the same"
        )


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
