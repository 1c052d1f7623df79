"""Fits of scaling laws: speed against plain scipy loops, the bootstrap, how often intervals cover, QAT fractions.

    .venv/bin/python -m benchmarks.scaling_laws speed                     both sides in one run, ratio printed
    .venv/bin/python -m benchmarks.scaling_laws bootstrap [--data FILE]   4,000 fits, a sample checked from all starts
    .venv/bin/python -m benchmarks.scaling_laws coverage [--sets 200] [LAW ...]
    .venv/bin/python -m benchmarks.scaling_laws qat                       757 runs, 0.3 % noise, best fractions

The scipy loops are what such code usually is: `minimize(method="L-BFGS-B")` from every start for Huber's loss in logarithms,
`curve_fit` for least squares, derivatives by finite differences. scipy must be installed (it is with the extra `dev`).
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.optimize import curve_fit, minimize

from scaling.fit.fitting import fit
from scaling.fit.intervals import QUANTILES
from scaling.fit.simulate import simulate, study
from scaling.fit.solver import Objective, solve
from scaling.laws import LAWS, Law
from scaling.laws.base.columns import Columns, from_size_and_tokens
from scaling.laws.base.dual import Array
from scaling.runs.read import read_runs
from scaling.show.tables import simulation

SMALL = ("chinchilla", "isoflop", "over-training", "downstream", "qat-fraction", "learning-rate")


def speed() -> None:
    """Default fits of 100 runs (757 for qat-loss), and the same starts by a plain scipy loop."""
    size, ratio = np.meshgrid(np.geomspace(1e7, 3e9, 10), np.geomspace(2.5, 640, 10))
    hundred = from_size_and_tokens(size.ravel(), (size * ratio).ravel())
    print("law             runs starts  default fit  starts alone   scipy loop   ratio  reached the optimum: ours, scipy")
    for name, columns, share in (("chinchilla", hundred, 1.0), ("over-training", hundred, 1.0), ("qat-loss", None, 8 / 512)):
        law = LAWS[name]
        chosen: Columns = columns or (law.design() if law.design else {})
        frame = study(law, law.truth, chosen, law.noise, np.random.default_rng(0))
        began = time.perf_counter()
        found = fit(law, frame)
        whole = time.perf_counter() - began
        objective, target = Objective.of(law, None), frame[law.target].to_numpy()
        starts = law.starting_points(0)
        began = time.perf_counter()
        ours = solve(law, objective, chosen, target, law.to_solver(starts))
        alone = time.perf_counter() - began
        some = starts[: round(len(starts) * share)]
        began = time.perf_counter()
        theirs = np.array([_scipy(law, objective, chosen, target, start) for start in some])
        loop = (time.perf_counter() - began) / share
        best = ours.objective.min()
        reached = [np.mean(np.isclose(values, best, rtol=1e-4)) for values in (ours.objective, theirs)]
        note = "" if share == 1 else f" (scipy: {len(some)} starts measured, scaled up)"
        print(
            f"{name:14} {len(target):5} {len(starts):6} {whole:10.2f} s {alone:11.2f} s {loop:10.1f} s {loop / alone:6.0f}x"
            f"  {100 * reached[0]:.0f} % and {100 * reached[1]:.0f} %{note}",
            flush=True,
        )
        assert found.objective_value <= theirs.min() * (1 + 1e-6), "scipy found a better optimum"


def _scipy(law: Law, objective: Objective, columns: Columns, target: Array, start: Array) -> float:
    """The objective's value that scipy reaches from one start."""
    ones = np.ones_like(target)

    def value(solver: Array) -> float:
        with np.errstate(all="ignore"):
            predicted = law.value(law.from_solver(solver[None]), columns)[0]
            total = objective.value(objective.residuals(predicted, target), ones)
        return float(total) if np.isfinite(total) else 1e10

    if objective.name == "huber-log":
        return float(minimize(value, law.to_solver(start), method="L-BFGS-B").fun)

    def model(_: Array, *theta: float) -> Array:
        return np.asarray(law.value(np.array([theta]), columns)[0])

    try:
        with np.errstate(all="ignore"):
            theta, _ = curve_fit(model, np.zeros_like(target), target, p0=start, maxfev=10_000)
            return float(np.sum((model(target, *theta) - target) ** 2))
    except RuntimeError:  # no convergence
        return float("inf")


def bootstrap(data: Path | None) -> None:
    """4,000 bootstrap fits of the Chinchilla law, warm-started; 20 of them again from every start."""
    law = LAWS["chinchilla"]
    if data is not None:
        frame = read_runs([data]).sort_values("loss").iloc[:-5]
    else:
        random = np.random.default_rng(0)
        size, ratio = np.exp(random.uniform(17, 23, 240)), np.exp(random.uniform(0, 6, 240))
        frame = study(law, law.truth, from_size_and_tokens(size, size * ratio), 0.003, random)
    objective = Objective.of(law, None)
    columns, target = {name: frame[name].to_numpy() for name in law.columns}, frame["loss"].to_numpy()
    starts = law.to_solver(law.starting_points(0))
    first = solve(law, objective, columns, target, starts)
    best = first.solver[np.argmin(first.objective)]
    runs = len(target)
    times = np.random.default_rng(0).multinomial(runs, np.full(runs, 1 / runs), size=4000).astype(float)
    began = time.perf_counter()
    found = solve(law, objective, columns, target, np.repeat(best[None], 4000, axis=0), weights=times)
    seconds = time.perf_counter() - began
    worst = 0.0
    for row in range(0, 4000, 200):
        full = solve(law, objective, columns, target, starts, weights=times[row])
        worst = max(worst, float(found.objective[row] / full.objective.min() - 1))
    low, high = np.quantile(law.from_solver(found.solver), QUANTILES, axis=0)
    print(
        f"{runs} runs, objective {first.objective.min():.6g}; "
        f"4,000 bootstrap fits: {seconds:.2f} s, {found.converged.sum()} converged"
    )
    print(f"20 of them from all {len(starts)} starts: objective lower by at most {100 * worst:.2g} %")
    for index, name in enumerate(law.names):
        print(f"  {name:6} {law.from_solver(best)[index]:10.4f}  ({low[index]:.4f} to {high[index]:.4f})")


def coverage(names: list[str], sets: int) -> None:
    """How often nominal 95 % intervals cover, per parameter and forecast."""
    for name in names or [*SMALL, "qat-loss"]:
        law = LAWS[name]
        simulation(simulate(law, sets=min(sets, 40) if name == "qat-loss" else sets))
    if not names or "over-training" in names:
        print("over-training, five runs as in Gadre et al., table 1:")
        size = np.array([10_569_312, 78_914_048, 153_677_376, 411_616_256, 10_569_312], dtype=float)
        columns = from_size_and_tokens(size, size * np.array([20, 20, 20, 20, 320]))
        simulation(simulate(LAWS["over-training"], columns=columns, sets=sets))
        print("over-training, runs at 20 tokens per parameter alone: a and b are not determined, the rest is")
        size = np.array([10_569_312, 78_914_048, 153_677_376, 411_616_256, 1_439_795_200, 6_889_410_560], dtype=float)
        beyond = from_size_and_tokens(2e10, 4e11)
        for runs in (6, 4):
            columns = from_size_and_tokens(size[:runs], 20.0 * size[:runs])
            simulation(simulate(LAWS["over-training"], columns=columns, beyond=beyond, sets=sets))


def qat() -> None:
    """All sixteen numbers of the QAT loss law free, 757 runs with 0.3 % noise: best fractions against the truth's."""
    law = LAWS["qat-loss"]
    print("true constants: " + ", ".join(f"{name} {value:g}" for name, value in law.truth.items()))
    began = time.perf_counter()
    found = simulate(law, sets=10, bootstrap=50)
    print(f"best fraction over 10 studies: mean absolute error {found.fraction_mae:.4f} ({time.perf_counter() - began:.0f} s)")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "bootstrap", "coverage", "qat"])
    parser.add_argument("laws", nargs="*")
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    tasks: dict[str, Callable[[], None]] = {
        "speed": speed,
        "bootstrap": lambda: bootstrap(options.data),
        "coverage": lambda: coverage(options.laws, options.sets),
        "qat": qat,
    }
    tasks[options.what]()


if __name__ == "__main__":
    main()
