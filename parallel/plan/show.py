"""The planner's answers as JSON and as tables for a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from parallel.plan.check import Checked, comparable_gib, quantile
from parallel.plan.forecast import Forecast
from parallel.plan.memory import PARTS, capacity_gib
from parallel.plan.simulate import Point


def costs(said: Forecast, tokens: float, price: float | None) -> dict[str, float | None]:
    """Device-hours, days, energy and money of a run of `tokens` tokens."""
    choice, machine = said.job.choice, said.job.hardware
    seconds = tokens / (said.tokens_per_second_per_gpu * choice.gpus)
    hours = seconds * choice.gpus / 3600
    dollars = price if price is not None else machine.dollars_per_hour
    return {
        "days": seconds / 86400,
        "device_hours": hours,
        "energy_mwh": hours * machine.watts / 1e6 if machine.watts else None,
        "dollars": hours * dollars if dollars is not None else None,
    }


def assumptions(said: Forecast) -> dict[str, Any]:
    """What a forecast takes for granted."""
    job = said.job
    return {
        "hardware": job.hardware.name,
        "peak_flops": job.hardware.flops("bf16" if job.precision == "fp8" else job.precision),
        "memory_gib": capacity_gib(job),
        "recipe": job.recipe.name,
        "precision": job.precision,
        "constants": vars(job.constants),
        "constants_fitted": job.recipe.fitted(job.hardware.kind),
        "links": [vars(link) for link in job.hardware.links],
        "flops_per_token": job.shape.flops_per_token(job.sequence),
        "parameters": job.shape.parameters,
        "source": job.hardware.source,
    }


def plan_json(best: Sequence[Forecast], instead: Forecast | None, tokens: float | None, price: float | None) -> dict[str, Any]:
    """The object that `layout plan --json` prints."""
    candidates = []
    for said in best:
        entry = said.as_json()
        entry["tokens_per_day"] = said.tokens_per_second_per_gpu * said.job.choice.gpus * 86400
        if tokens is not None:
            entry["run"] = costs(said, tokens, price)
        candidates.append(entry)
    answer: dict[str, Any] = {"candidates": candidates, "assumptions": assumptions(best[0])}
    if instead is not None:
        answer["nearest_that_fits"] = instead.as_json()
    return answer


def plan_table(best: Sequence[Forecast], instead: Forecast | None, tokens: float | None, price: float | None) -> None:
    """Print layouts, the best one's memory by part, and what a run costs."""
    console = wide_console()
    job = best[0].job
    title = f"{job.shape.parameters / 1e9:,.3g} B parameters, {job.choice.gpus} x {job.hardware.name}, recipe {job.recipe.name}"
    table = Table("layout", "fits", "GiB", "step, s", "tokens/s/device", "MFU", "bubble", "why no faster", title=title)
    for said in best:
        table.add_row(
            said.job.choice.words().replace(",", " "),
            "yes" if said.fits else "NO",
            f"{said.memory_gib['total']:.1f}",
            f"{said.step_seconds:.3g}",
            f"{said.tokens_per_second_per_gpu:,.0f}",
            f"{100 * said.mfu:.1f} %",
            f"{100 * said.bubble_fraction:.1f} %",
            "; ".join(said.reasons()),
        )
    console.print(table)
    memory = Table(
        "GiB", *(said.job.choice.words().split(",microbatch")[0].replace(",", " ") or "1 device" for said in best[:3])
    )
    for part in (*PARTS, "total"):
        memory.add_row(part, *(f"{said.memory_gib[part]:.2f}" for said in best[:3]))
    console.print(memory)
    if not best[0].fits:
        more = best[0].memory_gib["total"] - capacity_gib(job)
        console.print(
            f"It does not fit: the fullest rank needs {more:.1f} GiB more than the {capacity_gib(job):.1f} GiB there are."
        )
        if instead is not None:
            console.print(f"The nearest layout that fits: {instead.job.choice.words()} ({instead.memory_gib['total']:.1f} GiB)")
        else:
            console.print("No layout of that many devices fits: take more devices.")
    if tokens is not None:
        spent = costs(best[0], tokens, price)
        words = [f"{spent['days']:,.1f} days", f"{spent['device_hours']:,.0f} device-hours"]
        words += [f"{spent['energy_mwh']:,.1f} MWh"] if spent["energy_mwh"] is not None else []
        words += [f"${spent['dollars']:,.0f}"] if spent["dollars"] is not None else ["no price stated (--price)"]
        console.print(f"{tokens:.3g} tokens with the first: {', '.join(words)}")
    if not job.recipe.fitted(job.hardware.kind):
        console.print(f"No measured rows of recipe {job.recipe.name} on {job.hardware.name}: its constants are defaults.")


def check_table(checked: Checked) -> None:
    """Print every row's forecast beside its measurement (the worst 40 if there are more), and the errors."""
    console = wide_console()
    table = Table("row", "layout", "fits, said", "ran", "GiB, said", "measured", "tokens/s, said", "measured", "error")
    pairs = list(zip(checked.rows, checked.forecasts, strict=True))

    def miss(pair: tuple[Any, Forecast]) -> float:
        row, said = pair
        return abs(said.tokens_per_second_per_gpu / row.tokens_per_second - 1) if row.tokens_per_second else 0.0

    for row, said in sorted(pairs, key=miss, reverse=True)[:40]:
        speed, actual = said.tokens_per_second_per_gpu, row.tokens_per_second
        table.add_row(
            row.name,
            said.job.choice.words().replace(",", " "),
            "yes" if said.fits else "NO",
            "yes" if row.ran else "no",
            f"{comparable_gib(row, said):.3g}",
            f"{row.memory_gib:.3g}" if row.memory_gib else "",
            f"{speed:,.0f}",
            f"{actual:,.0f}" if actual else "",
            f"{100 * (speed / actual - 1):+.1f} %" if actual else "",
        )
    console.print(table)
    if len(pairs) > 40:
        console.print(f"the 40 rows that are furthest off of {len(pairs)}; --json has all")
    for what, name in (("speed", "tokens/s"), ("memory", "memory")):
        errors = checked.errors(what)
        if errors:
            middle, high = quantile(errors, 0.5) or 0.0, quantile(errors, 0.9) or 0.0
            console.print(f"{name}: {len(errors)} rows, median error {100 * middle:.1f} %, 90th percentile {100 * high:.1f} %")
    if checked.fit_accuracy is not None:
        console.print(f"fit or no fit said rightly: {100 * checked.fit_accuracy:.1f} % of {len(pairs)} rows")
    if checked.skipped:
        console.print(f"{len(checked.skipped)} rows left out, such as {checked.skipped[0][0]}: {checked.skipped[0][1]}")


def simulate_table(points: Sequence[Point]) -> None:
    """Print a curve over numbers of devices."""
    table = Table("devices", "layout", "GiB", "step, s", "MFU", "failures/day", "useful time", "days", "device-hours", "MWh")
    for point in points:
        said = point.forecast
        table.add_row(
            f"{said.job.choice.gpus:,}",
            said.job.choice.words().replace(",", " "),
            f"{said.memory_gib['total']:.1f}",
            f"{said.step_seconds:.3g}",
            f"{100 * said.mfu:.1f} %",
            f"{point.failures_per_day:.2f}",
            f"{100 * point.useful:.1f} %",
            f"{point.days:,.1f}",
            f"{point.device_hours:,.0f}",
            f"{point.energy_mwh:,.0f}" if point.energy_mwh is not None else "",
        )
    wide_console().print(table)


def wide_console() -> Console:
    """A console that does not fold tables where no terminal sets its width."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 200)
    return console
