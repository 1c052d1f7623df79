"""The Power schedule against WSD with its peak tuned for every budget and batch. Real text, a small model under muP.

    python -m benchmarks.power --folder /tmp/power --seeds 3        (about an hour on two cores)

Power's a and peak are tuned once, on the pair in the middle; its exponent is the paper's. Prints tables and draws
docs/benchmarks/power.png.
"""

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from benchmarks.studies import train_all

BUDGETS = (2**18, 2**19, 2**20)
BATCHES = (512, 2_048, 8_192)
MIDDLE = (2**19, 2_048)
WIDTH = 64


@dataclass(frozen=True)
class Setting:
    """The overrides of a schedule, and a short name for them."""

    name: str
    overrides: tuple[str, ...]


def wsd(exponent: int) -> Setting:
    """WSD with a peak of 2^exponent."""
    return Setting(f"wsd-2e{exponent}", ("schedule=wsd", f"schedule.peak={2.0**exponent}"))


def power(a: float, exponent: int) -> Setting:
    """Power with the paper's exponent."""
    return Setting(f"power-a{a:g}-2e{exponent}", ("schedule=power", f"schedule.a={a}", f"schedule.peak={2.0**exponent}"))


class Study:
    """Losses of settings; runs that are not finished yet are trained."""

    def __init__(self, folder: Path, at_once: int) -> None:
        self.folder, self.at_once = folder, at_once

    def losses(self, runs: Sequence[tuple[Setting, int, int, int]]) -> list[float]:
        """Final validation loss of every (setting, budget, batch, seed); infinite if the run diverged."""
        names = {run: f"{run[0].name}-{run[1]}-{run[2]}-s{run[3]}" for run in runs}
        records = train_all(self.folder, {names[run]: self._overrides(*run) for run in runs}, at_once=self.at_once)
        of_runs = [records.get(names[run]) for run in runs]
        return [math.inf if record is None or record.loss is None else record.loss for record in of_runs]

    def _overrides(self, setting: Setting, budget: int, batch: int, seed: int) -> list[str]:
        return [
            f"data.cache_dir={self.folder}/cache",
            *("tokenizer.vocab_size=512", "model.vocab_size=512", "model.num_layers=2", f"model.hidden_size={WIDTH}"),
            *("model.num_heads=4", f"model.ffn_size={3 * WIDTH}", "model.qk_norm=false", "model.init_std=0.1"),
            *("optimizer.mup=true", f"optimizer.mup_base_width={WIDTH}"),
            *(f"train.tokens={budget}", f"train.batch_tokens={batch}", "train.sequence=128", "train.microbatch=4"),
            *setting.overrides,
            *("schedule.warmup_tokens=32768", "schedule.decay_fraction=0.2", "schedule.decay_shape=linear"),
            *(f"run.seed={seed}", "eval.tokens=200000", "checkpoint.every_tokens=1000000000"),
            "health.step_timeout_seconds=null",
        ]

    def tuned_wsd(self, budget: int, batch: int, seed: int = 0) -> Setting:
        """The best peak on a factor-2 grid, which grows until the best is not at an end."""
        middle = -5 + round(math.log2(batch / 2_048) / 2)
        exponents = list(range(middle - 2, middle + 3))
        while True:
            losses = self.losses([(wsd(exponent), budget, batch, seed) for exponent in exponents])
            best = losses.index(min(losses))
            if 0 < best < len(exponents) - 1:
                return wsd(exponents[best])
            exponents = [exponents[0] - 1, *exponents] if best == 0 else [*exponents, exponents[-1] + 1]

    def tuned_power(self, seed: int = 0) -> Setting:
        """The best a and peak on the middle pair."""
        settings = [power(a, exponent) for a, exponent in itertools.product((10, 20, 40, 80), (-6, -5, -4, -3))]
        losses = self.losses([(setting, *MIDDLE, seed) for setting in settings])
        for setting, loss in zip(settings, losses, strict=True):
            print(f"  {setting.name}: {loss:.4f}")
        return settings[losses.index(min(losses))]


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/power.png"))
    arguments = parser.parse_args()
    study = Study(arguments.folder, arguments.at_once)
    print(f"Power's constants, on {MIDDLE[0]} tokens in batches of {MIDDLE[1]}:")
    chosen = study.tuned_power()
    print(f"chosen: {chosen.name}\n")
    print("| tokens | batch | WSD's best peak | WSD | Power | difference | seed noise of WSD |\n|---|---|---|---|---|---|---|")
    differences = {}
    for budget, batch in itertools.product(BUDGETS, BATCHES):
        best, seeds = study.tuned_wsd(budget, batch), range(arguments.seeds)
        tuned, powered = (study.losses([(setting, budget, batch, seed) for seed in seeds]) for setting in (best, chosen))
        paired = [ours - theirs for ours, theirs in zip(powered, tuned, strict=True)]
        differences[budget, batch] = mean(paired), stdev(paired)
        print(
            f"| {budget:,} | {batch:,} | {best.name.removeprefix('wsd-').replace('e', '^')} | {mean(tuned):.4f} "
            f"| {mean(powered):.4f} | {mean(paired):+.4f} ± {stdev(paired):.4f} | {stdev(tuned):.4f} |",
            flush=True,
        )
    _draw(differences, arguments.out)


def _draw(differences: dict[tuple[int, int], tuple[float, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for batch, style, shade in zip(BATCHES, (":", "--", "-"), ("0.5", "0.3", "0.0"), strict=True):
        points = [differences[budget, batch] for budget in BUDGETS]
        axes.errorbar(
            BUDGETS,
            [point[0] for point in points],
            [point[1] for point in points],
            linestyle=style,
            color=shade,
            marker="o",
            capsize=3,
            label=f"batch {batch:,}",
        )
    axes.axhline(0, color="tab:red", linewidth=1)
    axes.set(xscale="log", xlabel="tokens", ylabel="Power - tuned WSD, nats per token", xticks=BUDGETS)
    axes.set_xticklabels([f"{budget:,}" for budget in BUDGETS])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
