"""When a run's weights are quantized, from its configuration. Imports no torch."""

from dataclasses import dataclass

from train.config.schema import Config
from train.config.sections.quantization import QatConfig


@dataclass(frozen=True)
class LowPrecisionPhase:
    """The end of a run with low-precision weights."""

    start: int
    """tokens trained before it, in whole steps: steps that begin here or later are in low precision"""
    why: str
    """text that says why it starts there"""

    def holds(self, tokens: int) -> bool:
        """Whether the step that ended at `tokens` was in low precision. If so, its state has the method's parameters."""
        return tokens > self.start


def low_precision_phase(config: Config) -> LowPrecisionPhase | None:
    """The low-precision phase of a run; None if it has none. It may turn out shorter than one step, which a rule refuses.

    `start=auto` counts all parameters at `bits`, even those of a wider embedding, and the planned tokens in whole steps. The
    start is rounded down to a whole step; a phase shorter than one step becomes empty.
    """
    quant, total = config.low_precision, config.total_tokens
    if quant is None:
        return None
    if isinstance(quant.start, float):
        before, why = quant.start, f"quant.start={quant.start}"
    elif not isinstance(quant, QatConfig):
        before, why = 0.0, "quant.start=auto"  # which a rule refuses
    else:
        from scaling.laws.qat import PAPER_A, optimal_fraction  # imported late: laws may be slow to import

        parameters = config.model.shape.parameters
        fraction = optimal_fraction(total, parameters, quant.bits)
        ratio = total / (parameters * quant.bits / 8)
        law = f"f* = exp(-{PAPER_A} / ln S) = {fraction:.3g}" if ratio > 1 else "f* = 0 where S is at most 1"
        before, why = 1.0 - fraction, f"quant.start=auto: S = {ratio:.4g} tokens per byte of parameters, {law}"
    tokens = round(before * total)
    if total - tokens < config.batches.batch_before(total):
        return LowPrecisionPhase(total, why)
    return LowPrecisionPhase(config.batches.tokens(config.batches.steps(tokens + 1) - 1), why)
