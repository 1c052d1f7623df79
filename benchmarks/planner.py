"""The planner's forecasts against published measurements.

    python -m benchmarks.planner sweep ROWS.csv      tokens/s, memory and fit / no fit of the H100 sweep, groups left out in
                                                     turn (--only WORD: those alone whose name has it; half a minute each)
    python -m benchmarks.planner sources ROWS.csv    every other source of the table
    python -m benchmarks.planner tables              Narayanan's tables and Megatron-Core's
    python -m benchmarks.planner constants ROWS.csv  fits the constants of the recipes anew and prints them as YAML

ROWS.csv is a table as docs/planner.md describes it.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.planner_tables import megatron_core, narayanan
from parallel.plan.fit import Values, first_rank_gib, fit, speed, with_values
from parallel.plan.job import Measured
from parallel.plan.memory import GIB, memory
from parallel.plan.rows import Row, read_rows

SWEEP_TIME: Values = {
    "matmul_efficiency": 0.7,
    "matmul_half": 500,
    "attention_efficiency": 0.3,
    "traffic": 1.0,
    "node_efficiency": 0.3,
    "network_decay": 0.3,
    "layer_seconds": 4e-3,
    "hop_seconds": 5e-5,
    "network_hop_seconds": 4e-3,
    "step_seconds": 0.01,
    "ring.network_decay": 0.8,
    "ring.hop_seconds": 2e-3,
    "ring.network_hop_seconds": 2e-2,
    "host.hop_seconds": 2e-3,
    "host.message_seconds": 0.45,
}
TIME: Values = {
    "matmul_efficiency": 0.7,
    "matmul_half": 300,
    "attention_efficiency": 0.4,
    "traffic": 2.0,
    "network_efficiency": 0.5,
    "network_decay": 0.1,
    "data_overlap": 0.5,
    "layer_seconds": 1e-3,
}
MEMORY: Values = {"activation_scale": 1.15, "gathered": 20, "slack_gib": 0.6}
SWEEP_MEMORY: Values = {**MEMORY, "host.activation_scale": 1.1}


def tokens_per_second(row: Row) -> float | None:
    """Measured tokens/s of a device."""
    return row.tokens_per_second


def gib(row: Row) -> float | None:
    """Measured GiB."""
    return row.memory_gib


def misses(rows: Iterable[Row], values: Mapping[str, float], what: str) -> np.ndarray:
    """(predicted - measured) / measured of the rows that measured `what`."""
    predict, measured = (speed, tokens_per_second) if what == "speed" else (first_rank_gib, gib)
    pairs = [(predict(with_values(row.job, values)), measured(row)) for row in rows if row.ran and measured(row)]
    return np.array([predicted / float(actual or 1) - 1 for predicted, actual in pairs])


def line(name: str, errors: np.ndarray) -> str:
    """A table line: rows, median, 90th percentile, worst, bias."""
    if not len(errors):
        return f"| {name} | 0 | - | - | - | - |"
    size = np.abs(errors)
    return (
        f"| {name} | {len(errors)} | {100 * np.median(size):.1f} | {100 * np.quantile(size, 0.9):.1f} | "
        f"{100 * size.max():.0f} | {100 * np.median(errors):+.1f} |"
    )


HEADER = "| rows | number | median error, % | 90th percentile, % | worst, % | median signed, % |\n|---|---|---|---|---|---|"


def fits_right(rows: Sequence[Row], values: Mapping[str, float], reserve_gib: float) -> float:
    """Share of the rows for which fit / no fit is said rightly."""
    said = [memory(with_values(row.job, values))["total"] / GIB <= row.job.hardware.memory_gib - reserve_gib for row in rows]
    return float(np.mean([fits == row.ran for fits, row in zip(said, rows, strict=True)]))


def best_reserve(rows: Sequence[Row], values: Mapping[str, float]) -> float:
    """The GiB a run cannot have that tell these rows apart best; the middle of the best ones."""
    choices = np.arange(0.0, 12.5, 0.5)
    shares = np.array([fits_right(rows, values, float(reserve)) for reserve in choices])
    return float(np.median(choices[shares == shares.max()]))


GROUPS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row.values["model"],
    "devices": lambda row: f"{row.job.choice.gpus} devices",
}


def without_links(row: Row, fabric: str | None) -> Row:
    """The row as somebody plans who has not measured the allocation's links; `fabric` is the guessed state of the node's."""
    job = row.job
    return replace(row, job=replace(job, measured=Measured(), constants=job.recipe.constants_for(job.hardware.kind, fabric)))


def sweep(rows: Sequence[Row], only: str = "") -> None:
    """Print the errors on the sweep: constants fitted on all of it, then with each group left out."""
    rows = [row for row in rows if row.job.recipe.name == "nanotron"]
    ran = [row for row in rows if row.ran]
    print("constants as they stand in configs/_recipes/nanotron.yaml\n\n" + HEADER)
    print(line("tokens/s", misses(ran, {}, "speed")))
    for fabric in (None, "ring"):
        blind = [without_links(row, fabric) for row in ran]
        print(line(f"tokens/s, without the rows' own links, {fabric or 'switch'} assumed", misses(blind, {}, "speed")))
    print(line("memory", misses(ran, {}, "memory")))
    print(f"\nfit / no fit right: {100 * fits_right(rows, {}, ran[0].job.constants.reserve_gib):.1f} % of {len(rows)} rows")
    for kind, group in GROUPS.items():
        print(f"\nleft out by {kind}\n\n{HEADER}")
        speeds, memories, right = [], [], 0.0
        for name in sorted({group(row) for row in rows if only in group(row)}):
            inside = [row for row in rows if group(row) != name]
            outside = [row for row in rows if group(row) == name]
            values = fit(inside, SWEEP_TIME, speed, tokens_per_second, rounds=8)
            values |= fit(inside, SWEEP_MEMORY, first_rank_gib, gib, rounds=8)
            right += fits_right(outside, values, best_reserve(inside, values)) * len(outside)
            speeds.append(misses(outside, values, "speed"))
            memories.append(misses(outside, values, "memory"))
            print(line(f"tokens/s, {name} left out", speeds[-1]))
            print(line(f"memory, {name} left out", memories[-1]), flush=True)
        if speeds:
            print(line("tokens/s, every row predicted while left out", np.concatenate(speeds)))
            print(line("memory, every row predicted while left out", np.concatenate(memories)))
            count = sum(only in group(row) for row in rows)
            print(f"\nfit / no fit right while left out: {100 * right / count:.1f} % of {count} rows", flush=True)


def by_source(rows: Sequence[Row]) -> None:
    """Print the errors of every source, recipe and machine, with the constants as they stand."""
    print(HEADER)
    for name in sorted({(row.source.split(" ")[0], row.job.recipe.name, row.job.hardware.name) for row in rows}):
        own = [row for row in rows if (row.source.split(" ")[0], row.job.recipe.name, row.job.hardware.name) == name]
        fitted = "fitted" if own[0].job.recipe.fitted(name[2]) else "recipe's default constants"
        words = f"{name[0]} on {name[2]} (recipe {name[1]}, {fitted})"
        print(line(f"{words}: tokens/s", misses(own, {}, "speed")))
        if any(row.memory_gib for row in own):
            print(line(f"{words}: memory", misses(own, {}, "memory")))


def tables() -> None:
    """Print Narayanan's tables: predicted and published TFLOP/s."""
    rows = [*narayanan(), *megatron_core()]
    print("| row | published TFLOP/s | predicted | error, % |\n|---|---|---|---|")
    errors = []
    for row in rows:
        predicted, actual = speed(row.job), float(row.tokens_per_second or 1)
        errors.append(predicted / actual - 1)
        published = float(row.values["tflops"])
        print(f"| {row.name} | {published:.0f} | {published * predicted / actual:.0f} | {100 * errors[-1]:+.1f} |")
    count = len(narayanan())
    print("\n" + HEADER + "\n" + line("Narayanan", np.array(errors[:count])))
    print(line("Megatron-Core", np.array(errors[count:])))


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sweep", "sources", "tables", "constants"])
    parser.add_argument("rows", type=Path, nargs="?")
    parser.add_argument("--only", default="", help="of the sweep, leave out the groups alone whose name has this word")
    arguments = parser.parse_args()
    rows = read_rows(arguments.rows)[0] if arguments.rows else []
    if arguments.what == "sweep":
        sweep(rows, arguments.only)
    elif arguments.what == "sources":
        by_source(rows)
    elif arguments.what == "tables":
        tables()
    elif arguments.what == "constants":
        constants(rows)


STARTS: dict[str, Values] = {"nanotron": SWEEP_TIME}
FEW: Values = {"matmul_efficiency": 0.7}
"""What fewer than six rows can tell."""


def constants(rows: Sequence[Row]) -> None:
    """Fit every recipe on every machine that has rows of it, and print what belongs into its YAML file."""
    own = [*rows, *narayanan(), *megatron_core()]
    for recipe, machine in sorted({(row.job.recipe.name, row.job.hardware.name) for row in own}):
        chosen = [row for row in own if (row.job.recipe.name, row.job.hardware.name) == (recipe, machine) and stated(row)]
        if not chosen:
            continue
        measured = sum(row.ran and row.tokens_per_second is not None for row in chosen)
        values = fit(chosen, STARTS.get(recipe, TIME) if measured >= 6 else FEW, speed, tokens_per_second, rounds=15)
        if sum(row.memory_gib is not None for row in chosen) >= 6:
            values |= fit(chosen, SWEEP_MEMORY if recipe == "nanotron" else MEMORY, first_rank_gib, gib)
            if any(not row.ran for row in chosen):
                values["reserve_gib"] = best_reserve(chosen, values)
        print(f"\n{recipe} on {machine}\n\n{HEADER}")
        print(line("tokens/s", misses(chosen, values, "speed")))
        print(line("memory", misses(chosen, values, "memory")))
        print(f"\n    {machine}: {as_yaml(values)}", flush=True)


def stated(row: Row) -> bool:
    """Whether a row says its precision: speeds above what bf16 reaches must not be taken for bf16."""
    return bool(row.values.get("precision")) or row.source in ("narayanan", "megatron-core")


def as_yaml(values: Values) -> str:
    """Constants in the form of a recipe's file."""
    plain = [f"{name}: {value:.3g}" for name, value in values.items() if "." not in name]
    fabrics: dict[str, list[str]] = {}
    for name, value in values.items():
        fabric, _, constant = name.rpartition(".")
        if fabric:
            fabrics.setdefault(fabric, []).append(f"{constant}: {value:.3g}")
    if fabrics:
        inside = ", ".join(f"{fabric}: {{{', '.join(items)}}}" for fabric, items in fabrics.items())
        plain.append(f"fabrics: {{{inside}}}")
    return "{" + ", ".join(plain) + "}"


if __name__ == "__main__":
    main()
