"""Does one learning rate serve every width? Real text, four widths, a factor-2 grid, muP against the standard parametrisation.

    python -m benchmarks.mup --folder /tmp/mup --seeds 1        (about 40 minutes on two cores)

Prints the table of final validation losses and draws docs/benchmarks/mup.png.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.studies import train_all

WIDTHS = (32, 64, 128, 256)
EXPONENTS = range(-11, -3)  # learning rates 2^k
TOKENS, BATCH = 524_288, 2_048
BASE_WIDTH = 64
KINDS = {
    "standard": ["optimizer.mup=false"],
    "muP": ["optimizer.mup=true", f"optimizer.mup_base_width={BASE_WIDTH}", "model.init_std=0.1"],
}


def overrides(folder: Path, kind: str, width: int, exponent: int, seed: int) -> list[str]:
    """Two layers; heads of 16, so wider models have more. No norm of queries and keys, which would hide part of the effect."""
    return [
        f"data.cache_dir={folder}/cache",
        *("tokenizer.vocab_size=512", "model.vocab_size=512", "model.num_layers=2", "model.qk_norm=false"),
        *(f"model.hidden_size={width}", f"model.num_heads={width // 16}", f"model.ffn_size={3 * width}"),
        *(f"train.tokens={TOKENS}", f"train.batch_tokens={BATCH}", "train.sequence=128", "train.microbatch=16"),
        *(f"schedule.peak={2.0**exponent}", f"schedule.warmup_tokens={TOKENS // 10}", f"run.seed={seed}"),
        *("eval.tokens=200000", "checkpoint.every_tokens=1000000000", "health.step_timeout_seconds=null"),
        *KINDS[kind],
    ]


def name(kind: str, width: int, exponent: int, seed: int) -> str:
    """The name of a run."""
    return f"{kind}-{width}-2e{-exponent}-s{seed}"


Losses = dict[str, dict[int, list[float]]]
"""kind -> width -> mean loss over the seeds for each exponent; infinite if a run diverged."""


def measure(folder: Path, seeds: Sequence[int], at_once: int) -> Losses:
    """Train the runs that are not finished yet, and return all losses."""
    runs = [
        (kind, width, exponent, seed)
        for seed in seeds
        for width in reversed(WIDTHS)
        for kind in KINDS
        for exponent in EXPONENTS
    ]
    records = train_all(folder, {name(*run): overrides(folder, *run) for run in runs}, at_once=at_once)

    def loss(kind: str, width: int, exponent: int) -> float:
        of_seeds = [records.get(name(kind, width, exponent, seed)) for seed in seeds]
        losses = [math.inf if record is None or record.loss is None else record.loss for record in of_seeds]
        return sum(losses) / len(losses)

    return {kind: {width: [loss(kind, width, exponent) for exponent in EXPONENTS] for width in WIDTHS} for kind in KINDS}


def show(losses: Losses) -> None:
    """Print the tables in Markdown."""
    for kind, by_width in losses.items():
        print(f"\n| {kind} | " + " | ".join(f"2^{exponent}" for exponent in EXPONENTS) + " | best |")
        print("|---" * (len(EXPONENTS) + 2) + "|")
        for width, row in by_width.items():
            best = min(range(len(row)), key=row.__getitem__)
            cells = [f"**{loss:.3f}**" if index == best else f"{loss:.3f}" for index, loss in enumerate(row)]
            print(f"| {width} | " + " | ".join(cells) + f" | 2^{EXPONENTS[best]} |")


def draw(losses: Losses, path: Path) -> None:
    """Draw loss against learning rate, a line per width."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(losses), figsize=(10, 4.5), sharey=True, layout="constrained")
    largest = max(loss for rows in losses.values() for row in rows.values() for loss in row[:-2] if math.isfinite(loss))
    smallest = min(loss for rows in losses.values() for row in rows.values() for loss in row)
    for axes, (kind, by_width) in zip(panels, losses.items(), strict=True):
        for (width, row), style, shade in zip(by_width.items(), (":", "-.", "--", "-"), (0.6, 0.45, 0.25, 0.0), strict=True):
            rates = [2.0**exponent for exponent in EXPONENTS]
            axes.plot(rates, row, style, color=str(shade), marker="o", markersize=3, label=f"width {width}")
            best = min(range(len(row)), key=row.__getitem__)
            axes.plot(rates[best], row[best], "*", markersize=13, color="tab:red", zorder=3)
        axes.set(xscale="log", xlabel="peak learning rate", title=kind, ylim=(smallest - 0.1, min(largest, smallest + 2) + 0.1))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("validation loss, nats per token")
    panels[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/mup.png"))
    arguments = parser.parse_args()
    losses = measure(arguments.folder, range(arguments.seeds), arguments.at_once)
    show(losses)
    draw(losses, arguments.out)


if __name__ == "__main__":
    main()
