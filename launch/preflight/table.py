"""The table of a preflight."""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from launch.preflight.judge import names_of


def show(reports: Sequence[dict[str, Any]], problems: Sequence[str]) -> None:
    """Print a line for every node, and what is wrong."""
    names = names_of(reports)
    table = Table(title=f"{len(names)} nodes, {len(reports)} processes", title_style="bold")
    table.add_column("node")
    columns = ("devices", "busy", "memory free", "disk free", "disk writes", "products", "links", "clock", "code")
    for column in columns:
        table.add_column(column, justify="right")
    for node, name in names.items():
        mine = [report for report in reports if report["node"] == node]
        first = mine[0]
        rates = [rate for report in mine for rate in report["pairs"].values()]
        table.add_row(
            name,
            f"{len(mine)} x {first['device']}",
            f"{100 * max(report['busy'] for report in mine):.0f} %",
            _gib(first["memory_bytes"]),
            _gib(first["disk_bytes"]),
            "" if first["write_bytes_per_second"] is None else f"{first['write_bytes_per_second'] / 1e6:,.0f} MB/s",
            f"{min(report['flops_per_second'] for report in mine) / 1e12:,.3g} TFLOP/s",
            f"{statistics.median(rates) / 1e9:,.3g} GB/s" if rates else "",
            f"{max((report['clock_seconds'] for report in mine), key=abs):+.3f} s",
            first["versions"]["foretrain's code"],
        )
    console = Console()
    console.print(table)
    if len(reports) > 1:
        print(f"all-reduce over all: {min(report['all_reduce_bytes_per_second'] for report in reports) / 1e9:,.3g} GB/s")
    for problem in problems:
        print(f"not fit: {problem}")
    if not problems:
        print("all of them are fit")


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:,.1f} GiB"
