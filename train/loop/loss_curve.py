"""The loss curve of a run, as a picture."""

import json
from pathlib import Path

from scaling.record import EvaluationLine, StepLine, read_metrics
from train.config import Config
from train.config.resolve.quantization import low_precision_phase

Lines = list[StepLine | EvaluationLine]


def draw_loss(run: Path, config: Config) -> None:
    """Draw `<run>/loss.png`: training and validation loss over tokens, and the counted bigram's loss as a line.

    A branch has the curve of its trunk before it. A line marks where the weights begin to be quantized.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = list(read_metrics(run))
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    if trunk := trunk_lines(config.run.trunk, before=min((line.tokens for line in lines), default=0)):
        axes.plot(*_training(trunk), linewidth=1, color="0.6", label="trunk, training")
        axes.plot(*_validation(trunk), "o-", color="0.6", markerfacecolor="white", label="trunk, validation")
    axes.plot(*_training(lines), linewidth=1, label="training")
    axes.plot(*_validation(lines), "o-", label="validation")
    if (phase := low_precision_phase(config)) is not None and phase.start > 0:
        axes.axvline(phase.start, color="gray", linestyle=":", linewidth=1, label="quantized from here on")
    bigram = bigram_loss_of(run)
    if bigram is not None:
        axes.axhline(bigram, color="gray", linestyle="--", linewidth=1, label=f"counted bigram {bigram:.3f}")
    axes.set(xlabel="tokens", ylabel="loss (nats per token)", title=run.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(run / "loss.png", dpi=150)
    pyplot.close(figure)


def trunk_lines(checkpoint: str | None, before: int) -> Lines:
    """The lines of the run that a branch started from, and of that run's trunk, up to `before` tokens; none if it is gone."""
    if checkpoint is None:
        return []
    run = Path(checkpoint).expanduser().parent.parent
    try:
        lines = [line for line in read_metrics(run, unreadable=[]) if line.tokens < before]
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not lines:
        return []
    further = record.get("trunk") if isinstance(record, dict) else None
    return [*trunk_lines(further, before=min(line.tokens for line in lines)), *lines]


def _training(lines: Lines) -> tuple[list[int], list[float]]:
    steps = [line for line in lines if isinstance(line, StepLine)]
    return [line.tokens for line in steps], [line.loss for line in steps]


def _validation(lines: Lines) -> tuple[list[int], list[float]]:
    evaluations = [line for line in lines if isinstance(line, EvaluationLine)]
    return [line.tokens for line in evaluations], [line.validation["validation"] for line in evaluations]


def bigram_loss_of(run: Path) -> float | None:
    """The loss of a counted bigram on the run's text, nats per token; None if unknown."""
    try:
        return float(json.loads((run / "data.json").read_text(encoding="utf-8"))["bigram_loss"])
    except (OSError, ValueError, KeyError):
        return None
