"""The runs of a ladder before they are started: parameters, tokens, FLOPs, predicted memory, time and cost."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.table import Table

from launch.forecast import Expected, expect
from launch.ladder.trunks import Job
from launch.state import status_of
from parallel.plan.hardware import Hardware


def rows_of(jobs: Sequence[Job], machine: Hardware, price: float | None) -> list[tuple[Job, Expected]]:
    """Every run with what is expected of it."""
    return [(job, expect(job.config, machine, price=price, trunk_tokens=job.trunk_tokens)) for job in jobs]


def as_json(rows: Sequence[tuple[Job, Expected]], machine: Hardware) -> dict[str, Any]:
    """The object of `--json`."""
    plain = [_plain(job, expected) for job, expected in rows]
    return {
        "machine": machine.name,
        "runs": [row for row in plain if not row["trunk"]],
        "trunks": [row for row in plain if row["trunk"]],
        "flops": sum(row["flops"] for row in plain),
        "flops_without_trunks": sum(6.0 * row["parameters"] * row["tokens"] for row in plain if not row["trunk"]),
        "device_hours": sum(row["device_hours"] for row in plain),
        "dollars": _sum([row["dollars"] for row in plain]),
    }


def _plain(job: Job, expected: Expected) -> dict[str, Any]:
    config = job.config
    parameters, low = config.model.shape.parameters, config.low_precision
    return {
        "name": job.name,
        "trunk": job.is_trunk,
        "folder": str(job.folder),
        "needs": None if job.needs is None else job.needs.name,
        "status": status_of(job.folder) or "new",
        "parameters": parameters,
        "tokens": config.total_tokens,
        "trunk_tokens": job.trunk_tokens,
        "bits": None if low is None else low.stored_bits,
        "flops": 6.0 * parameters * (config.total_tokens - job.trunk_tokens),
        "processes": job.processes,
        "memory_gib": expected.memory_gib,
        "fits": expected.fits,
        "seconds": expected.seconds,
        "device_hours": expected.device_hours,
        "dollars": expected.dollars,
        "overrides": list(job.words),
    }


def show(rows: Sequence[tuple[Job, Expected]], machine: Hardware) -> None:
    """Print the table."""
    table = Table(title=f"{sum(not job.is_trunk for job, _ in rows)} runs on {machine.name}", title_style="bold")
    for column in ("run", "status"):
        table.add_column(column, overflow="fold")
    for column in ("parameters", "tokens", "of a trunk", "bits", "FLOPs", "memory", "time", "cost"):
        table.add_column(column, justify="right", no_wrap=column != "memory")
    plain = as_json(rows, machine)
    for row in (*plain["trunks"], *plain["runs"]):
        table.add_row(
            ("trunk " if row["trunk"] else "") + row["name"],
            row["status"],
            f"{row['parameters']:,}",
            f"{row['tokens']:,}",
            f"{row['trunk_tokens']:,}" if row["trunk_tokens"] else "",
            "" if row["bits"] is None else f"{row['bits']:g}",
            f"{row['flops']:.2e}",
            _gib(row["memory_gib"]) + ("" if row["fits"] else ", too much"),
            _time(row["seconds"]),
            _money(row["dollars"]),
            end_section=row["trunk"] and row is plain["trunks"][-1],
        )
    Console().print(table)
    saved = 1.0 - plain["flops"] / plain["flops_without_trunks"] if plain["flops_without_trunks"] else 0.0
    shared = f"; trunks save {100 * saved:.0f} % of the FLOPs" if plain["trunks"] else ""
    print(f"together {plain['flops']:.3g} FLOPs, {plain['device_hours']:.3g} device hours, {_money(plain['dollars'])}{shared}")


def _gib(size: float) -> str:
    return f"{size:,.1f} GiB" if size >= 1 else f"{size * 1024:,.0f} MiB"


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _money(dollars: float | None) -> str:
    if dollars is None:
        return "no price"
    return f"${dollars:,.2f}" if dollars < 100 else f"${dollars:,.0f}"


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
