"""The loss curve of a run, as a picture."""

import json
from pathlib import Path

from scaling.record import EvaluationLine, StepLine, read_metrics


def draw_loss(run: Path) -> None:
    """Draw `<run>/loss.png`: training and validation loss over tokens, and the counted bigram's loss as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = list(read_metrics(run))
    steps = [line for line in lines if isinstance(line, StepLine)]
    evaluations = [line for line in lines if isinstance(line, EvaluationLine)]
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    axes.plot([line.tokens for line in steps], [line.loss for line in steps], linewidth=1, label="training")
    axes.plot(
        [line.tokens for line in evaluations],
        [line.validation["validation"] for line in evaluations],
        "o-",
        label="validation",
    )
    bigram = bigram_loss_of(run)
    if bigram is not None:
        axes.axhline(bigram, color="gray", linestyle="--", linewidth=1, label=f"counted bigram {bigram:.3f}")
    axes.set(xlabel="tokens", ylabel="loss (nats per token)", title=run.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(run / "loss.png", dpi=150)
    pyplot.close(figure)


def bigram_loss_of(run: Path) -> float | None:
    """The loss of a counted bigram on the run's text, nats per token; None if unknown."""
    try:
        return float(json.loads((run / "data.json").read_text(encoding="utf-8"))["bigram_loss"])
    except (OSError, ValueError, KeyError):
        return None
