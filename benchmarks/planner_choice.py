"""What the planner would choose, and curves to internet scale.

python -m benchmarks.planner_choice best ROWS.csv               the layout it would choose against the best measured one of
a sweep python -m benchmarks.planner_choice search                      seconds of a search over 3,072 devices
python -m benchmarks.planner_choice scale docs/planner_scale.png
"""

import argparse
import statistics
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from parallel.plan.commands import job_of
from parallel.plan.fit import speed
from parallel.plan.job import Job, Measured
from parallel.plan.memory import GIB, capacity_gib, fit_chance, memory
from parallel.plan.pictures import curve_picture
from parallel.plan.rows import Row, read_rows
from parallel.plan.search import layouts, search
from parallel.plan.simulate import curve


def best(path: Path) -> None:
    """The layout that the planner would choose, for every model and number of devices of the sweep.

    Among all of its layouts, also those that ran out of memory, the fastest that is likely to fit. Printed: its measured speed
    over the best measured speed; 0 if it ran out of memory. "as allocated" knows the bandwidths measured in each row's
    allocation; "from data sheets" knows only an H100 whose links are in the state that most of the sweep has.
    """
    rows, _ = read_rows(path)
    groups: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        if row.job.recipe.name == "nanotron":
            groups[row.values["model"], row.job.choice.gpus].append(row)
    print(
        "| model | devices | layouts | as allocated | from data sheets | chosen from data sheets |\n|---|---|---|---|---|---|"
    )
    shares: dict[bool, list[float]] = {True: [], False: []}
    for (model, devices), own in sorted(groups.items()):
        if not any(row.ran for row in own):
            continue
        chosen = {}
        for allocated in shares:
            jobs = [row.job if allocated else _plain(row) for row in own]
            needed = {id(job): memory(job)["total"] / GIB for job in jobs}
            room = [job for job in jobs if needed[id(job)] <= capacity_gib(job)]
            pick = max(room, key=lambda job: speed(job) * fit_chance(job, needed[id(job)]))
            chosen[allocated] = own[jobs.index(pick)]
            fastest = max(row.tokens_per_second or 0 for row in own)
            shares[allocated].append((chosen[allocated].tokens_per_second or 0.0) / fastest)
        layout = chosen[False].job.choice.words()
        print(f"| {model} | {devices} | {len(own)} | {shares[True][-1]:.3f} | {shares[False][-1]:.3f} | {layout} |")
    for allocated, name in ((True, "as allocated"), (False, "from data sheets")):
        good = sum(share >= 0.95 for share in shares[allocated])
        print(f"\n{name}: within 5 % of the best in {good} of {len(shares[allocated])} cases")


def _plain(row: Row) -> Job:
    recipe, machine = row.job.recipe, row.job.hardware
    return replace(row.job, measured=Measured(), constants=recipe.constants_for(machine.name, "ring"))


def searches() -> None:
    """CPU seconds (of one thread, there is no other) of a search over all layouts of 3,072 devices, the median of five."""
    print("| recipe | machine | layouts | CPU seconds |\n|---|---|---|---|")
    for recipe, machine in (("megatron", "a100-80g"), ("native", "h100"), ("deepspeed", "mi250x")):
        job = job_of("1t", machine, recipe, 2048, 3072, "bf16")
        count = sum(1 for _ in layouts(job, 3072, {}))
        times = []
        for _ in range(5):
            begin = time.process_time()
            search(job, 3072, {}, 5)
            times.append(time.process_time() - begin)
        print(f"| {recipe} | {machine} | {count:,} | {statistics.median(times):.2f} |", flush=True)


def scale(picture: Path) -> None:
    """Curves of three models with Megatron's recipe on H100, 8,192 sequences of 4,096 tokens a step."""
    curves = {}
    print("| model | devices | layout | GiB | step, s | MFU, % | failures a day | useful, % | days | device-hours |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, tokens in (("8b", 1.5e13), ("175b", 1.5e13), ("1t", 2e13)):
        curves[f"{name}, {tokens:.2g} tokens"] = points = curve(job_of(name, "h100", "megatron", 4096, 8192, "bf16"), tokens)
        for point in points:
            said = point.forecast
            cells = [
                name,
                f"{said.job.choice.gpus:,}",
                said.job.choice.words().replace(",", " "),
                f"{said.memory_gib['total']:.1f}",
            ]
            cells += [
                f"{said.step_seconds:.3g}",
                f"{100 * said.mfu:.1f}",
                f"{point.failures_per_day:.2f}",
                f"{100 * point.useful:.1f}",
            ]
            cells += [f"{point.days:,.1f}", f"{point.device_hours:,.0f}"]
            print("| " + " | ".join(cells) + " |", flush=True)
    curve_picture(curves, picture)


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["best", "search", "scale"])
    parser.add_argument("path", type=Path, nargs="?")
    arguments = parser.parse_args()
    if arguments.what == "search":
        searches()
    elif arguments.what == "best":
        best(arguments.path)
    else:
        scale(arguments.path or Path("planner_scale.png"))


if __name__ == "__main__":
    main()
