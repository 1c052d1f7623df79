"""Quantization-aware training: what it gains, when it should begin, where the decay should be, what it costs.

    python -m benchmarks.qat cost                            step time against full precision (a minute)
    python -m benchmarks.qat widths   --folder /tmp/qat      QAT against round-to-nearest, 8 to 1 bits
    python -m benchmarks.qat fraction --folder /tmp/qat      loss by quantized fraction, three budgets, 2 and 4 bits
    python -m benchmarks.qat fused    --folder /tmp/qat      the decay fused with QAT, or before it
    python -m benchmarks.qat scales   --folder /tmp/qat      the learning rate of the scales
    python -m benchmarks.qat torchao  --folder /tmp/qat      the same end of training with torchao's QAT

Real text (the standard library), a decoder of 59,616 parameters, batches of 2,048 tokens. Each seed has one
full-precision trunk at a constant rate, from which all its runs branch. Runs of a seed differ only in what is compared, so
differences are paired by seed. Runs that are finished in the folder are not run again. Every study prints a Markdown table;
most draw a figure (--out).
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev

from benchmarks.studies import train_all
from parallel.engine.protocol import StepResult
from parallel.environment import ProcessEnvironment
from parallel.mesh import World, connect
from train.config import load_config

BATCH, EVERY = 2_048, 32_768
TRUNK = 2**22  # tokens; no branch starts later than at the largest budget
BUDGETS = (2**18, 3 * 2**18, 2**21)
BUDGET = 2**20  # of the studies with one budget
FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.7, 0.95)
DECAY = 0.2  # fraction of the run, at most
WIDTHS = (8.0, 6.0, 4.0, 3.0, 2.0, 1.58, 1.0)
MODEL = [
    *("tokenizer.vocab_size=512", "model.vocab_size=512", "model.num_layers=2", "model.hidden_size=32", "model.num_heads=2"),
    *(
        "model.ffn_size=96",
        f"train.batch_tokens={BATCH}",
        "train.sequence=128",
        "train.microbatch=16",
        "schedule.peak=0.015625",
    ),
    *("schedule.warmup_tokens=32768", "eval.tokens=400000", "health.step_timeout_seconds=null", "health.on_spike=ignore"),
]


class Study:
    """Losses of branches; runs that are not finished yet are trained."""

    def __init__(self, folder: Path, seeds: int, at_once: int) -> None:
        self.folder, self.seeds, self.at_once = folder, range(seeds), at_once

    def trunks(self) -> None:
        """Train a trunk for each seed, with a checkpoint at every multiple of EVERY tokens."""
        words = [
            "schedule=constant",
            f"train.tokens={TRUNK}",
            f"checkpoint.every_tokens={EVERY}",
            "checkpoint.keep_every=1",
        ]
        runs = {f"trunk-s{seed}": [*self._base(seed), *words] for seed in self.seeds}
        train_all(self.folder, runs, at_once=self.at_once)

    def losses(self, branches: dict[str, tuple[int, int, list[str]]]) -> dict[str, list[float]]:
        """Final validation losses by name, one for each seed; infinite if a run diverged.

        A branch is (total tokens, tokens it shares with the trunk, overrides).
        """
        runs = {}
        for name, (total, common, words) in branches.items():
            step = common // EVERY * EVERY // BATCH
            for seed in self.seeds:
                trunk = self.folder / f"trunk-s{seed}" / "checkpoints" / f"step_{step:08}"
                off = [f"run.trunk={trunk}"] if step else []
                rest = [f"train.tokens={total}", "checkpoint.every_tokens=1000000000"]
                runs[f"{name}-s{seed}"] = [*self._base(seed), "schedule=wsd", *rest, *off, *words]
        records = train_all(self.folder, runs, at_once=self.at_once)

        def loss(name: str) -> float:
            record = records.get(name)
            return math.inf if record is None or record.loss is None else record.loss

        return {name: [loss(f"{name}-s{seed}") for seed in self.seeds] for name in branches}

    def rounded(self, name: str, bits: float, world: World) -> list[float]:
        """Validation losses of finished runs after their weights are rounded to nearest, one for each seed."""
        from train.trained.evaluation import evaluate_run
        from train.trained.layout import evaluation_config

        losses = []
        for seed in self.seeds:
            run = self.folder / f"{name}-s{seed}"
            result = run / f"rounded-{bits:g}.json"
            if not result.exists():
                answer = evaluate_run(run, evaluation_config(run, []), world, f"bits={bits:g}")
                result.write_text(json.dumps(answer), encoding="utf-8")
            losses.append(float(json.loads(result.read_text(encoding="utf-8"))["loss"]))
        return losses

    def _base(self, seed: int) -> list[str]:
        return [f"data.cache_dir={self.folder}/cache", *MODEL, f"run.seed={seed}"]


def full_precision(total: int, decay: float) -> tuple[int, int, list[str]]:
    """A branch without quantization."""
    return total, round((1 - decay) * total), [f"schedule.decay_fraction={decay}"]


def quantized(total: int, bits: float, fraction: float, *extra: str, common: int | None = None) -> tuple[int, int, list[str]]:
    """A branch of which the last `fraction` is quantized."""
    words = ["quant=qat", f"quant.bits={bits:g}", f"quant.start={1 - fraction:g}", f"schedule.decay_fraction={DECAY}", *extra]
    before = round((1 - max(fraction, 0.0)) * total) // BATCH * BATCH
    return total, before if common is None else common, words


def show(losses: Sequence[float]) -> str:
    """Mean ± standard deviation over the seeds."""
    return f"{mean(losses):.4f} ± {stdev(losses):.4f}" if len(losses) > 1 else f"{losses[0]:.4f}"


def paired(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Mean ± standard deviation of the differences, paired by seed."""
    return _signed([a - b for a, b in zip(ours, theirs, strict=True)])


def _signed(differences: Sequence[float]) -> str:
    spread = f" ± {stdev(differences):.4f}" if len(differences) > 1 else ""
    return f"{mean(differences):+.4f}{spread}"


def widths(study: Study, out: Path) -> None:
    """QAT against round-to-nearest of the full-precision run, at one budget."""
    study.trunks()
    shares = (0.2, 0.5)
    branches = {f"fp-{DECAY:g}-{BUDGET}": full_precision(BUDGET, DECAY)}
    for share in shares:
        branches |= {f"q{bits:g}-{share:g}-{BUDGET}": quantized(BUDGET, bits, share) for bits in WIDTHS}
    losses = study.losses(branches)
    full = losses[f"fp-{DECAY:g}-{BUDGET}"]
    print(f"Full precision: {show(full)} nats per token, {len(full)} seeds, {BUDGET:,} tokens\n")
    print("| bits | round to nearest | QAT, last 20 % | QAT, last 50 % | QAT (20 %) - full | QAT (20 %) - rounded |")
    print("|---|---|---|---|---|---|")
    rounded = {}
    with connect(ProcessEnvironment.read()) as world:
        for bits in WIDTHS:
            rounded[bits] = study.rounded(f"fp-{DECAY:g}-{BUDGET}", bits, world)
    for bits in WIDTHS:
        short, long = (losses[f"q{bits:g}-{share:g}-{BUDGET}"] for share in shares)
        cells = [show(rounded[bits]), show(short), show(long), paired(short, full), paired(short, rounded[bits])]
        print(f"| {bits:g} | {' | '.join(cells)} |")
    lines = {
        "rounded to nearest": [rounded[bits] for bits in WIDTHS],
        "QAT, last 20 %": [losses[f"q{bits:g}-0.2-{BUDGET}"] for bits in WIDTHS],
        "QAT, last 50 %": [losses[f"q{bits:g}-0.5-{BUDGET}"] for bits in WIDTHS],
    }
    _draw_lines(out, [f"{bits:g}" for bits in WIDTHS], lines, full)


def fraction(study: Study, out: Path) -> None:
    """Loss by the fraction of the tokens that is quantized, with the decay fused into it.

    A short quantized phase also shortens the decay; the second table has the cost of that alone, in full precision.
    """
    study.trunks()
    branches: dict[str, tuple[int, int, list[str]]] = {}
    for total in BUDGETS:
        branches |= {f"fp-{d:g}-{total}": full_precision(total, d) for d in (0.05, 0.1, DECAY)}
        branches |= {f"q{b}-{f:g}-{total}": quantized(total, b, f) for b in (2, 4) for f in FRACTIONS}
    losses = study.losses(branches)
    parameters = load_config(MODEL).model.shape.parameters
    from scaling.laws.qat import optimal_fraction

    print("| bits | tokens | " + " | ".join(f"{f:g}" for f in FRACTIONS) + " | best, seed by seed | f* |")
    print("|---" * (len(FRACTIONS) + 4) + "|")
    for bits in (2, 4):
        for total in BUDGETS:
            rows = [losses[f"q{bits}-{f:g}-{total}"] for f in FRACTIONS]
            lowest = min(range(len(rows)), key=lambda index: mean(rows[index]))
            cells = [f"**{show(row)}**" if index == lowest else show(row) for index, row in enumerate(rows)]
            best = [FRACTIONS[min(range(len(rows)), key=lambda index: rows[index][seed])] for seed in study.seeds]
            law = optimal_fraction(total, parameters, bits)
            print(f"| {bits} | {total:,} | {' | '.join(cells)} | {', '.join(f'{f:g}' for f in best)} | {law:.3f} |")
    print("\nFull precision by share of the decay:\n\n| tokens | 0.05 | 0.1 | 0.2 |\n|---|---|---|---|")
    for total in BUDGETS:
        print(f"| {total:,} | {' | '.join(show(losses[f'fp-{d:g}-{total}']) for d in (0.05, 0.1, DECAY))} |")
    print("\nQAT's cost over full precision with the same decay, seed by seed:\n")
    print("| bits | tokens | " + " | ".join(f"{f:g}" for f in FRACTIONS) + " |\n" + "|---" * (len(FRACTIONS) + 2) + "|")
    for bits in (2, 4):
        for total in BUDGETS:
            same = [losses[f"fp-{min(f, DECAY):g}-{total}"] for f in FRACTIONS]
            cells = [paired(losses[f"q{bits}-{f:g}-{total}"], full) for f, full in zip(FRACTIONS, same, strict=True)]
            print(f"| {bits} | {total:,} | {' | '.join(cells)} |")
    _draw_fractions(out, losses, parameters, optimal_fraction)


def fused(study: Study, out: Path) -> None:
    """The decay inside QAT, or in full precision before QAT warms up again (classic, to two peaks), for the same tokens."""
    study.trunks()
    peak = 0.015625
    branches: dict[str, tuple[int, int, list[str]]] = {}
    for bits in (4, 6):
        for share in (0.1, 0.2, 0.4):
            branches[f"q{bits}-{share:g}-{BUDGET}"] = quantized(BUDGET, bits, share)
            before = round((1 - share) * BUDGET) // BATCH * BATCH
            common = round((1 - DECAY) * before)
            for rise in (1.0, 0.3):
                words = ("quant.fuse_decay=false", f"quant.rewarm_peak={peak * rise}")
                branches[f"classic{rise:g}-q{bits}-{share:g}-{BUDGET}"] = quantized(BUDGET, bits, share, *words, common=common)
    losses = study.losses(branches)
    print("| bits | QAT share | fused | classic | classic, rising to 0.3 peak | fused - classic | fused - the better classic |")
    print("|---|---|---|---|---|---|---|")
    for bits in (4, 6):
        for share in (0.1, 0.2, 0.4):
            ours = losses[f"q{bits}-{share:g}-{BUDGET}"]
            full, low = (losses[f"classic{rise:g}-q{bits}-{share:g}-{BUDGET}"] for rise in (1.0, 0.3))
            better = min(full, low, key=mean)
            cells = [show(ours), show(full), show(low), paired(ours, full), paired(ours, better)]
            print(f"| {bits} | {share:g} | {' | '.join(cells)} |")


def scales(study: Study, out: Path) -> None:
    """The learning rate of the scales, as a multiple of the default; the last half of the run quantized."""
    study.trunks()
    multiples = (1.0, 0.3, 0.1, 0.01)
    branches: dict[str, tuple[int, int, list[str]]] = {}
    for bits in (8, 4, 2):
        branches[f"q{bits}-0.5-{BUDGET}"] = quantized(BUDGET, bits, 0.5)
        for multiple in multiples[1:]:
            words = f"quant.scale_learning_rate={multiple}"
            branches[f"q{bits}-0.5-{BUDGET}-scales{multiple:g}"] = quantized(BUDGET, bits, 0.5, words)
    losses = study.losses(branches)
    print("| bits | 1 | " + " | ".join(f"{multiple:g}, difference" for multiple in multiples[1:]) + " |")
    print("|---" * (len(multiples) + 1) + "|")
    for bits in (8, 4, 2):
        usual = losses[f"q{bits}-0.5-{BUDGET}"]
        cells = [paired(losses[f"q{bits}-0.5-{BUDGET}-scales{multiple:g}"], usual) for multiple in multiples[1:]]
        print(f"| {bits} | {show(usual)} | {' | '.join(cells)} |")


def torchao(study: Study, out: Path) -> None:
    """The end of a trunk in a bare loop, from the same weights: in full precision, with our quantizer at 4 bits per row, with
    the same but scales computed from the weights instead of learned, and with torchao's QAT at 4 bits per channel."""
    from benchmarks.qat_loop import KINDS, final_loss

    study.trunks()
    losses: dict[str, list[float]] = {}
    for kind in KINDS:
        losses[kind] = [final_loss(study.folder / f"trunk-s{seed}", kind, BUDGET) for seed in study.seeds]
    print("| 4 bits per row, last 20 % | loss | - full precision | - ours |\n|---|---|---|---|")
    for kind in KINDS:
        full, ours = paired(losses[kind], losses["full precision"]), paired(losses[kind], losses["ours"])
        print(f"| {kind} | {show(losses[kind])} | {full} | {ours} |")


def cost(rounds: int, overrides: Sequence[str]) -> None:
    """A step of the demo's model, 4,096 tokens in two micro-batches: full precision and QAT in turn, in one process.

    CPU seconds of this process, over all threads, which other work on the machine changes little.
    """
    from parallel.mesh import build_meshes
    from train.build.engine import build_engine
    from train.build.model import COMPUTE_DTYPES
    from train.build.quantization import Quantization
    from train.data.loader import TrainLoader
    from train.data.prepare import prepare
    from train.data.shards import open_shards

    seconds: dict[str, list[float]] = {}
    kinds = {
        "full precision": [],
        **{f"{bits:g} bits": ["quant=qat", "quant.start=0", f"quant.bits={bits:g}"] for bits in WIDTHS},
    }
    kinds["4 bits, groups of 32"] = [*kinds["4 bits"], "quant.group=32"]
    kinds["4 bits, activations"] = [*kinds["4 bits"], "quant.activation_bits=8"]
    with connect(ProcessEnvironment.read()) as world:
        steps: dict[str, Callable[[], StepResult]] = {}
        for kind, words in kinds.items():
            config = load_config([*words, *overrides])
            engine = build_engine(config, build_meshes(config.parallel.layout, world.device), world.device)
            quantization = Quantization(config, engine, COMPUTE_DTYPES[config.train.precision])
            if quantization.begins(0):
                quantization.begin()
            shards = open_shards(prepare(config.data, config.tokenizer, progress=False))
            loader, rows = TrainLoader(shards.train, config.train.sequence, 0), config.train.microbatch
            batches = [loader.batch(range(index * rows, (index + 1) * rows)) for index in range(config.accumulation)]
            steps[kind] = partial(engine.train_step, batches, learning_rate=1e-4, tokens=config.train.batch_tokens)
        for number in range(rounds + 2):
            for kind, step in steps.items():
                start = time.process_time()
                step().loss.item()
                if number >= 2:
                    seconds.setdefault(kind, []).append(time.process_time() - start)
    full = seconds["full precision"]
    print("| | step, processor ms | / full precision | quartiles |\n|---|---|---|---|")
    for kind, of_kind in seconds.items():
        ratios = sorted(ours / theirs for ours, theirs in zip(of_kind, full, strict=True))
        low, _, high = statistics.quantiles(ratios, n=4)
        print(f"| {kind} | {1000 * statistics.median(of_kind):.1f} | {statistics.median(ratios):.3f} | {low:.3f}, {high:.3f} |")


def _draw_lines(path: Path, labels: list[str], lines: dict[str, list[list[float]]], full: list[float]) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for (name, losses), style, shade in zip(lines.items(), (":", "--", "-"), ("0.5", "0.25", "0.0"), strict=True):
        above = [[ours - theirs for ours, theirs in zip(row, full, strict=True)] for row in losses]
        spread = [stdev(row) if len(row) > 1 else 0.0 for row in above]
        axes.errorbar(labels, [mean(row) for row in above], spread, marker="o", capsize=3, ls=style, color=shade, label=name)
    axes.set(xlabel="bits", ylabel="loss above full precision, nats per token", yscale="symlog")
    axes.set_yscale("symlog", linthresh=0.01)
    axes.axhline(0, color="tab:red", linewidth=1)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _draw_fractions(
    path: Path, losses: dict[str, list[float]], parameters: int, law: Callable[[float, float, float], float]
) -> None:
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, len(BUDGETS), figsize=(11, 6.5), sharex=True, layout="constrained", squeeze=False)
    for row, bits in zip(panels, (2, 4), strict=True):
        for axes, total in zip(row, BUDGETS, strict=True):
            by_fraction = [losses[f"q{bits}-{f:g}-{total}"] for f in FRACTIONS]
            for seed in range(len(by_fraction[0])):
                axes.plot(FRACTIONS, [run[seed] for run in by_fraction], color="0.75", linewidth=1)
            axes.plot(FRACTIONS, [mean(run) for run in by_fraction], "o-", color="black", markersize=4)
            axes.axvline(law(total, parameters, bits), color="tab:red", linestyle="--", linewidth=1, label="f* of the paper")
            axes.axhline(mean(losses[f"fp-{DECAY:g}-{total}"]), color="tab:blue", linewidth=1, label="full precision")
            axes.set_title(f"{bits} bits, {total:,} tokens", fontsize=10)
            axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("quantized share of the tokens")
    for axes in panels[:, 0]:
        axes.set_ylabel("validation loss, nats per token")
    panels[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure and show."""
    studies = {"widths": widths, "fraction": fraction, "fused": fused, "scales": scales, "torchao": torchao}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["cost", *studies])
    parser.add_argument("--folder", type=Path, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of `cost`")
    parser.add_argument("--out", type=Path, help="file of the figure")
    arguments, overrides = parser.parse_known_args()
    if arguments.study == "cost":
        cost(arguments.rounds, overrides)
        return
    if arguments.folder is None:
        parser.error("--folder is needed")
    import matplotlib

    matplotlib.use("Agg")
    study = Study(arguments.folder, arguments.seeds, arguments.at_once)
    studies[arguments.study](study, arguments.out or Path(f"docs/benchmarks/qat_{arguments.study}.png"))


if __name__ == "__main__":
    main()
