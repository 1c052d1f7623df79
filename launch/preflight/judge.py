"""Which nodes are slow or odd, by comparison with the others. Standard library only."""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

SLOW_LINK, SLOW_PRODUCT, SLOW_DISK = 0.5, 0.7, 0.2
"""less than this share of the median is slow"""
MOST_CLOCK_SECONDS = 0.5
BUSY_DEVICE, BUSY_CPU = 0.05, 4.0


def judge(reports: Sequence[dict[str, Any]], *, least_disk_bytes: float, least_link: float | None = None) -> list[str]:
    """A line for everything that is wrong with a node. `least_link`: bytes/s that every pair must reach."""
    names = names_of(reports)
    return [
        *_devices(reports, names),
        *_disks(reports, names, least_disk_bytes),
        *_slow(reports, names, "flops_per_second", SLOW_PRODUCT, "its matrix products run", "FLOP/s"),
        *_clocks(reports, names),
        *_versions(reports, names),
        *_links(reports, names, least_link),
    ]


def names_of(reports: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Node -> its name, with its number where several have the same."""
    hosts = {report["node"]: report["host"] for report in reports}
    count = Counter(hosts.values())
    return {node: host if count[host] == 1 else f"{host}/{node}" for node, host in sorted(hosts.items())}


def _devices(reports: Sequence[dict[str, Any]], names: dict[int, str]) -> Iterator[str]:
    usual, _ = Counter(report["device"] for report in reports).most_common(1)[0]
    for report in reports:
        where = f"{names[report['node']]}, rank {report['rank']}"
        if report["device"] != usual:
            yield f"{where}: its device is {report['device']}, the others' is {usual}"
        most = BUSY_CPU if report["device"] == "cpu" else BUSY_DEVICE
        if report["busy"] > most:
            kind = "processes a core want to run" if report["device"] == "cpu" else "of the device's memory is in use by others"
            amount = f"{report['busy']:.1f}" if report["device"] == "cpu" else f"{100 * report['busy']:.0f} %"
            yield f"{where}: it is not idle: {amount} {kind}"


def _disks(reports: Sequence[dict[str, Any]], names: dict[int, str], least: float) -> Iterator[str]:
    for report in reports:
        if report["disk_error"] is not None:
            yield f"{names[report['node']]}: runs cannot be written: {report['disk_error']}"
        elif report["disk_bytes"] is not None and report["disk_bytes"] < least:
            left = report["disk_bytes"] / 2**30
            yield f"{names[report['node']]}: {left:,.2f} GiB are left for runs, less than {least / 2**30:,.2f}"
    yield from _slow(reports, names, "write_bytes_per_second", SLOW_DISK, "it writes", "B/s")


def _slow(
    reports: Sequence[dict[str, Any]], names: dict[int, str], key: str, share: float, what: str, unit: str
) -> Iterator[str]:
    known = [report for report in reports if report[key] is not None]
    if len(known) < 2:
        return
    usual = statistics.median_high([report[key] for report in known])
    for report in known:
        if report[key] < share * usual:
            where = f"{names[report['node']]}, rank {report['rank']}"
            yield f"{where}: {what} at {report[key]:.3g} {unit}, {100 * report[key] / usual:.0f} % of the usual {usual:.3g}"


def _clocks(reports: Sequence[dict[str, Any]], names: dict[int, str]) -> Iterator[str]:
    usual = statistics.median([report["clock_seconds"] for report in reports])
    for report in reports:
        if abs(skew := report["clock_seconds"] - usual) > MOST_CLOCK_SECONDS:
            yield f"{names[report['node']]}, rank {report['rank']}: its clock is {skew:+.2f} s off"


def _versions(reports: Sequence[dict[str, Any]], names: dict[int, str]) -> Iterator[str]:
    for package in reports[0]["versions"]:
        usual, _ = Counter(report["versions"].get(package) for report in reports).most_common(1)[0]
        odd = {names[report["node"]]: report["versions"].get(package) for report in reports}
        for node, found in odd.items():
            if found != usual:
                yield f"{node}: {package} is {found}, the others have {usual}"


def _links(reports: Sequence[dict[str, Any]], names: dict[int, str], least: float | None) -> Iterator[str]:
    """Slow links: a node whose links to all others are slow, else pairs."""
    several = len(names) > 1
    rates = {
        tuple(sorted((report["node"] if several else report["rank"], other))): rate
        for report in reports
        for other, rate in report["pairs"].items()
    }
    if not rates:
        return
    places = 1 + max(place for pair in rates for place in pair)
    # One slow node among three makes two of three pairs slow; the best link of every node tells what is usual.
    usual = statistics.median_high([max(rate for pair, rate in rates.items() if place in pair) for place in range(places)])
    limit = max(SLOW_LINK * usual if len(rates) > 1 else 0.0, least or 0.0)
    slow = {pair: rate for pair, rate in rates.items() if rate < limit}
    of_places: dict[int, list[float]] = {}
    for pair, rate in slow.items():
        for place in pair:
            of_places.setdefault(place, []).append(rate)
    wholly = {place for place, found in of_places.items() if len(found) == places - 1 and places > 2}
    words = {place: names[place] if several else f"rank {place}" for place in range(places)}
    for place in sorted(wholly):
        yield f"{words[place]}: its links to all others are slow: {min(of_places[place]):.3g} B/s, usual are {usual:.3g}"
    for (one, other), rate in sorted(slow.items()):
        if not wholly & {one, other}:
            yield f"{words[one]} and {words[other]}: the link between them has {rate:.3g} B/s each way, below {limit:.3g}"
