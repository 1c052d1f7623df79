"""Noise on weights: what it makes of a cast to a small float, and what it costs.

    python -m benchmarks.noise study --folder /tmp/noise    full precision, noise and QAT, each cast to 8, 6 and 4 bits
    python -m benchmarks.noise cost                         step time against full precision (a minute)
    python -m benchmarks.noise parts                        where the time of the noise goes
    python -m benchmarks.noise gpu                          cost and memory of 1.1 B parameters, compiled, on a GPU

The study: real text (the standard library), a decoder of 59,616 parameters, 524,288 tokens in batches of 2,048. Runs of a
seed differ only in what is compared, so differences are paired by seed. Runs that are finished in the folder are not run again.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.studies import train_all
from parallel.engine.protocol import Engine, StepResult
from parallel.environment import ProcessEnvironment, keep_freed_memory
from parallel.mesh import World, build_meshes, connect
from scaling.record import RunRecord
from train.build.engine import build_engine
from train.build.model import COMPUTE_DTYPES
from train.build.quantization import Quantization
from train.config import Config, load_config
from train.data.loader import TrainLoader
from train.data.prepare import prepare
from train.data.shards import open_shards

TOKENS, BATCH, TRUNK = 2**19, 2_048, 419_840  # the trunk ends where the decay of about the last 20 % begins
MODEL = [
    *("tokenizer.vocab_size=512", "model.vocab_size=512", "model.num_layers=2", "model.hidden_size=32", "model.num_heads=2"),
    *("model.ffn_size=96", f"train.batch_tokens={BATCH}", "train.sequence=128", "train.microbatch=16"),
    *("schedule.peak=0.015625", "schedule.warmup_tokens=32768", "eval.tokens=100000", "health.step_timeout_seconds=null"),
    *("health.on_spike=ignore", "schedule=wsd", f"train.tokens={TOKENS}", f"schedule.decay_fraction={1 - TRUNK / TOKENS}"),
]
CASTS = {"none": None, "e4m3": 8, "e3m2": 6, "e2m3": 6, "e2m1": 4}
FORMS = [form for form in CASTS if form != "none"]
NAMES = {"gaussian": "Gaussian", "diffq": "uniform", "qat": "QAT"}
WIDTHS = (8, 6, 4)
BILLION = [
    *("model.num_layers=16", "model.hidden_size=2048", "model.num_heads=32", "model.num_kv_heads=8", "model.ffn_size=8192"),
    *("model.vocab_size=32000", "train.precision=bf16", "train.compile=true", "train.sequence=2048", "train.microbatch=4"),
    "train.batch_tokens=8192",
]


def runs_of(seed: int) -> dict[str, list[str]]:
    """Name -> overrides of a seed's runs. Those with QAT go on from the full-precision run where the decay begins."""
    runs: dict[str, list[str]] = {"full": []} | {
        f"{name}{bits}": [f"quant={name}", f"quant.b_target={bits}", f"quant.b_init={bits + 2}", "quant.block=16"]
        for name in ("gaussian", "diffq")
        for bits in WIDTHS
    }
    return {f"{name}-s{seed}": [*MODEL, f"run.seed={seed}", *words] for name, words in runs.items()}


def study(folder: Path, seeds: int, out: Path) -> None:
    """Train what is missing, cast everything, print the tables and draw the picture."""
    cache = f"data.cache_dir={folder}/cache"
    records: dict[str, RunRecord] = {}
    for seed in range(seeds):
        records |= train_all(folder, {name: [cache, *words] for name, words in runs_of(seed).items()}, at_once=1)
        trunk = folder / f"full-s{seed}" / "checkpoints" / f"step_{TRUNK // BATCH:08}"
        qat = {
            f"qat{bits}-s{seed}": [
                *(cache, *MODEL, f"run.seed={seed}", "quant=qat", f"quant.bits={bits}", "quant.embedding_bits=8"),
                *("quant.group=32", f"quant.start={TRUNK / TOKENS}", f"run.trunk={trunk}"),
            ]
            for bits in WIDTHS
        }
        records |= train_all(folder, qat, at_once=1)
    methods = ["full", *(f"{name}{bits}" for name in ("gaussian", "diffq", "qat") for bits in WIDTHS)]
    with connect(ProcessEnvironment.read()) as world:
        losses = {
            (method, form): [cast_loss(folder / f"{method}-s{seed}", form, world) for seed in range(seeds)]
            for method in methods
            for form in CASTS
        }
    show_study(methods, losses, records, seeds)
    draw_study(out, losses)


def cast_loss(run: Path, form: str, world: World) -> float:
    """Validation loss of a run after a cast to a format; "none": as trained."""
    from train.trained.evaluation import evaluate_run
    from train.trained.layout import evaluation_config

    result = run / f"cast-{form}.json"
    if not result.exists():
        answer = evaluate_run(run, evaluation_config(run, []), world, None if form == "none" else f"format={form}")
        result.write_text(json.dumps(answer), encoding="utf-8")
    return float(json.loads(result.read_text(encoding="utf-8"))["loss"])


Losses = dict[tuple[str, str], list[float]]


def show_study(methods: Sequence[str], losses: Losses, records: dict[str, RunRecord], seeds: int) -> None:
    """Losses as trained with bit widths, then what a cast adds to the loss of the same run; differences are paired by seed."""
    print("| run | as trained | less full precision | mean bit width at the end | blocks at b_target |\n|---|---|---|---|---|")
    for method in methods:
        less = "" if method == "full" else _spread(_paired(losses[method, "none"], losses["full", "none"]), "+.4f")
        widths = _widths([records[f"{method}-s{seed}"] for seed in range(seeds)], method[-1])
        print(f"| {_name(method)} | {_spread(losses[method, 'none'], '.4f')} | {less} | {widths} |")
    print("\nWhat a cast adds to the loss of the same run, paired by seed:\n")
    print("| run | " + " | ".join(FORMS) + " |\n" + "|---" * (len(FORMS) + 1) + "|")
    for method in methods:
        cells = [_spread(_paired(losses[method, form], losses[method, "none"]), "+.4f") for form in FORMS]
        print(f"| {_name(method)} | " + " | ".join(cells) + " |")


def _widths(records: Sequence[RunRecord], lowest: str) -> str:
    """Cells: mean bit width and the share of blocks at the lowest, over blocks and seeds; empty where nothing has a width."""
    blocks = [
        (float(width), count)
        for record in records
        for histogram in record.bit_widths.values()
        for width, count in histogram.items()
    ]
    if not blocks:
        return " | "
    total = sum(count for _, count in blocks)
    average = sum(width * count for width, count in blocks) / total
    at_target = sum(count for width, count in blocks if width == float(lowest)) / total
    return f"{average:.2f} | {100 * at_target:.0f} %"


def _name(method: str) -> str:
    return "full precision" if method == "full" else f"{NAMES[method[:-1]]}, {method[-1]}"


def _paired(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(ours, theirs, strict=True)]


def _spread(values: Sequence[float], form: str) -> str:
    return f"{mean(values):{form}}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def draw_study(out: Path, losses: Losses) -> None:
    """Left: losses as trained, above full precision. Then for every width what a cast adds to the loss of the same run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 4, figsize=(14, 4.2), layout="constrained")
    colors = dict(zip(("full", *NAMES), ("black", "tab:blue", "tab:orange", "tab:green"), strict=True))

    def points(axes: Any, method: str, place: int, rows: Sequence[Sequence[float]]) -> None:
        at = [index + 0.14 * (place - 1.5) for index in range(len(rows))]  # side by side, so that spreads can be told apart
        spread = [stdev(row) if len(row) > 1 else 0.0 for row in rows]
        label = "full precision" if method == "full" else NAMES[method]
        axes.errorbar(at, [mean(row) for row in rows], spread, fmt="o", capsize=3, color=colors[method], label=label)

    for place, method in enumerate(NAMES, 1):
        rows = [_paired(losses[f"{method}{bits}", "none"], losses["full", "none"]) for bits in WIDTHS]
        points(panels[0], method, place, rows)
    panels[0].set_xticks(range(len(WIDTHS)), [f"{bits} bits" for bits in WIDTHS])
    panels[0].set(title="as trained, less full precision", ylabel="nats per token; bars: a standard deviation over seeds")
    for axes, bits in zip(panels[1:], WIDTHS, strict=True):
        for place, method in enumerate(colors):
            run = method if method == "full" else f"{method}{bits}"
            points(axes, method, place, [_paired(losses[run, form], losses[run, "none"]) for form in FORMS])
        axes.set_xticks(range(len(FORMS)), FORMS)
        axes.set(title=f"what a cast adds, {bits} bits")
        axes.sharey(panels[1])
    for axes in panels:
        axes.axhline(0, color="0.6", linewidth=1)
        axes.grid(alpha=0.3, axis="y")
    panels[1].legend(fontsize=8, loc="upper left")
    figure.savefig(out, dpi=120)


def steps_of(world: World, words: Sequence[str]) -> tuple[Config, Engine, Callable[[], StepResult]]:
    """A run's configuration, its engine in the phase of its method, and a function that does a step."""
    config = load_config(words)
    engine = build_engine(config, build_meshes(config.parallel.layout, world.device), world.device)
    quantization = Quantization(config, engine, COMPUTE_DTYPES[config.train.precision])
    if quantization.begins(0):
        quantization.begin()
    shards = open_shards(prepare(config.data, config.tokenizer, progress=False))
    loader, rows = TrainLoader(shards.train, config.train.sequence, 0), config.train.microbatch
    batches = [loader.batch(range(index * rows, (index + 1) * rows)) for index in range(config.accumulation)]
    train = partial(engine.train_step, batches, learning_rate=1e-4, tokens=config.train.batch_tokens)
    number = 0

    def step() -> StepResult:
        nonlocal number
        quantization.prepare_step(number)
        number += 1
        return train()

    return config, engine, step


KINDS: dict[str, list[str]] = {"full precision": [], "gaussian": ["quant=gaussian"], "diffq": ["quant=diffq"]}


def cost(rounds: int, overrides: Sequence[str]) -> dict[str, float]:
    """Steps of the demo's model, 4,096 tokens, all kinds in turns in one process; processor time on a CPU, else wall time.

    Returns each kind's median ratio to full precision.
    """
    with connect(ProcessEnvironment.read()) as world:
        clock = time.process_time if world.device.type == "cpu" else time.perf_counter
        steps = {kind: steps_of(world, [*words, *overrides])[2] for kind, words in KINDS.items()}
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for number in range(rounds + 3):
            for kind, step in steps.items():
                start = clock()
                step().loss.item()
                if number >= 3:
                    seconds[kind].append(clock() - start)
    print("| | step, ms | / full precision, median | quartiles |\n|---|---|---|---|")
    medians = {}
    for kind, of_kind in seconds.items():
        ratios = sorted(ours / theirs for ours, theirs in zip(of_kind, seconds["full precision"], strict=True))
        low, _, high = statistics.quantiles(ratios, n=4)
        medians[kind] = statistics.median(ratios)
        print(f"| {kind} | {1000 * statistics.median(of_kind):.1f} | {medians[kind]:.3f} | {low:.3f}, {high:.3f} |")
    return medians


def gpu(rounds: int, overrides: Sequence[str]) -> dict[str, float]:
    """Step time and memory with noise over full precision, 1.1 B parameters in bf16, compiled. Returns what a kit compares: the
    ratio of the medians and the bytes per parameter that noise adds to the peak."""
    medians, peaks, parameters = {}, {}, 1
    with connect(ProcessEnvironment.read()) as world:
        on_gpu = world.device.type == "cuda"
        for kind in ("full precision", "gaussian"):
            config, engine, step = steps_of(world, [*BILLION, *overrides, *KINDS[kind]])
            parameters = config.model.shape.parameters
            seconds = []
            for number in range(rounds + 5):
                if number == 5 and on_gpu:
                    torch.cuda.reset_peak_memory_stats()
                start = time.perf_counter()
                step().loss.item()
                seconds.append(time.perf_counter() - start)
            medians[kind] = statistics.median(seconds[5:])
            peaks[kind] = torch.cuda.max_memory_allocated() if on_gpu else 0
            del engine, step
            if on_gpu:
                torch.cuda.empty_cache()
    ratio = medians["gaussian"] / medians["full precision"]
    added = (peaks["gaussian"] - peaks["full precision"]) / parameters
    print(f"{parameters:,} parameters: step time {ratio:.4f} x full precision, peak memory {added:+.2f} bytes per parameter")
    return {"ratio": ratio, "bytes_per_parameter": added}


def parts(rounds: int) -> None:
    """Processor time of the noise's parts for the matrices of the demo's model, forward and backward pass of a micro-batch."""
    from quant.noise.draws import rounded_normal_by_key, uniform_by_key
    from train.build.model import build_model

    model = build_model(load_config([]).model, torch.float32, torch.device("cpu"))
    matrices = [p.detach() for name, p in model.named_parameters() if name.startswith("blocks") and p.dim() == 2]
    torch.set_num_threads(1)
    keep_freed_memory()
    key, step, count = torch.tensor(5), torch.tensor(3), sum(matrix.numel() for matrix in matrices)
    bits = [torch.full((matrix.shape[0] // 32, matrix.shape[1] // 32), 5.0) for matrix in matrices]

    def add(uniform: bool) -> None:
        for matrix, widths in zip(matrices, bits, strict=True):
            torch.ops.foretrain_noise.add(matrix, widths, key, step, 0, 0, 32, uniform)

    def gradient(uniform: bool) -> None:
        for matrix, widths in zip(matrices, bits, strict=True):
            torch.ops.foretrain_noise.bits_gradient(matrix, widths, key, step, 0, 0, 32, uniform)

    measured: dict[str, Callable[[], object]] = {
        "rounded normal: draws": lambda: [rounded_normal_by_key(5, 3, matrix.shape, (0, 0)) for matrix in matrices],
        "rounded normal: forward, draws included": lambda: add(False),
        "rounded normal: backward, draws included": lambda: gradient(False),
        "uniform: draws": lambda: [uniform_by_key(5, 3, matrix.shape, (0, 0)) for matrix in matrices],
        "uniform: forward, draws included": lambda: add(True),
        "uniform: backward, draws included": lambda: gradient(True),
    }
    print(f"| {count:,} parameters in {len(matrices)} matrices | ms | ns per parameter |\n|---|---|---|")
    for name, function in measured.items():
        seconds = []
        for _ in range(rounds):
            start = time.process_time()
            function()
            seconds.append(time.process_time() - start)
        print(f"| {name} | {1e3 * statistics.median(seconds):.2f} | {1e9 * statistics.median(seconds) / count:.2f} |")


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["study", "cost", "parts", "gpu"])
    parser.add_argument("--folder", type=Path, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/noise.png"), help="file of the figure")
    arguments, overrides = parser.parse_known_args()
    if arguments.what == "cost":
        cost(arguments.rounds, overrides)
    elif arguments.what == "gpu":
        gpu(arguments.rounds, overrides)
    elif arguments.what == "parts":
        parts(arguments.rounds)
    elif arguments.folder is None:
        parser.error("--folder is needed")
    else:
        study(arguments.folder, arguments.seeds, arguments.out)


if __name__ == "__main__":
    main()
