"""Forecasts against what was measured: tables of published runs, and one's own run directories."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from parallel.plan.fit import MEMORY, TIME, Values, first_rank_gib, fit, speed, with_values
from parallel.plan.forecast import Forecast, forecast
from parallel.plan.native import job_of_record
from parallel.plan.rows import Row, read_rows


@dataclass(frozen=True)
class Checked:
    """Rows, their forecasts, and lines that could not be used with the reason."""

    rows: Sequence[Row]
    forecasts: Sequence[Forecast]
    skipped: Sequence[tuple[str, str]] = field(default_factory=tuple)

    def errors(self, what: str) -> list[float]:
        """|predicted - measured| / measured of the rows that ran and measured `what`: speed or memory."""
        found = []
        for row, said in zip(self.rows, self.forecasts, strict=True):
            actual = row.tokens_per_second if what == "speed" else row.memory_gib
            if row.ran and actual:
                predicted = said.tokens_per_second_per_gpu if what == "speed" else comparable_gib(row, said)
                found.append(abs(predicted / actual - 1))
        return sorted(found)

    @property
    def fit_accuracy(self) -> float | None:
        """Share of the rows whose fit or no fit is said rightly."""
        right = [said.fits == row.ran for row, said in zip(self.rows, self.forecasts, strict=True)]
        return sum(right) / len(right) if right else None

    def as_json(self) -> dict[str, Any]:
        """The object that `layout check --json` prints. `error` is that of tokens/s where rows state it, else of memory."""
        speeds, memories = self.errors("speed"), self.errors("memory")
        main = speeds or memories
        return {
            "rows": [_row_json(row, said) for row, said in zip(self.rows, self.forecasts, strict=True)],
            "error": {
                "median": quantile(main, 0.5),
                "p90": quantile(main, 0.9),
                "fit_accuracy": self.fit_accuracy,
                "memory_median": quantile(memories, 0.5),
                "memory_p90": quantile(memories, 0.9),
            },
            "skipped": [{"name": name, "why": why} for name, why in self.skipped],
        }


def comparable_gib(row: Row, said: Forecast) -> float:
    """The predicted memory of the rank that the row measured: tables state the first pipeline rank's."""
    return said.memory_gib["total"] if row.fullest else first_rank_gib(said.job)


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Of sorted values, linear between neighbours; None of none."""
    if not ordered:
        return None
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _row_json(row: Row, said: Forecast) -> dict[str, Any]:
    return {
        "name": row.name,
        "fits": said.fits,
        "memory_gib": comparable_gib(row, said),
        "peak_memory_gib": said.memory_gib["total"],
        "tokens_per_second_per_gpu": said.tokens_per_second_per_gpu,
        "mfu": said.mfu,
        "measured": {
            "fits": row.ran,
            "memory_gib": row.memory_gib,
            "tokens_per_second_per_gpu": row.tokens_per_second,
            "mfu": float(row.values["mfu"]) / 100 if row.values.get("mfu") else None,
        },
    }


def check_rows(paths: Iterable[Path], *, recipe: str | None, hardware: str | None) -> Checked:
    """Read tables and run directories, and forecast each of their runs.

    Raises:
        UserError: nothing there can be read or used.
    """
    rows: list[Row] = []
    skipped: list[tuple[str, str]] = []
    for path in paths:
        if path.is_dir():
            own, why = _runs(path, hardware)
            rows += own
            skipped += why
        else:
            found, left = read_rows(path, recipe=recipe, hardware=hardware)
            rows += found
            skipped += [(f"line {number}", reason) for number, reason in left]
    if not rows:
        reasons = "\n".join(f"{name}: {why}" for name, why in skipped[:3])
        raise UserError(f"no run to check in {', '.join(map(str, paths))}" + (f"\n{reasons}" if reasons else ""))
    return Checked(rows, [forecast(row.job) for row in rows], skipped)


def _runs(folder: Path, hardware: str | None) -> tuple[list[Row], list[tuple[str, str]]]:
    """The run directories in or under a folder."""
    rows, skipped = [], []
    for record_file in sorted([folder / "run.json", *folder.glob("*/run.json")]):
        if not record_file.is_file():
            continue
        config_file = record_file.with_name("config.yaml")
        record = json.loads(record_file.read_text(encoding="utf-8"))
        if not config_file.is_file() or record.get("engine", "native") != "native":
            skipped.append((record_file.parent.name, "no config.yaml, or another engine"))
            continue
        config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
        peak, speed_ = record.get("peak_memory_bytes"), record.get("tokens_per_second")
        job = job_of_record(config, str(record.get("device") or "cpu"), hardware)
        rows.append(
            Row(
                name=record_file.parent.name,
                source="foretrain",
                job=job,
                ran=True,
                tokens_per_second=speed_ / job.choice.gpus if speed_ else None,
                memory_gib=peak / 2**30 if peak else None,
                values={},
                fullest=True,
            )
        )
    return rows, skipped


def refined(checked: Checked) -> tuple[Checked, str]:
    """Constants refined on the rows, for every recipe and machine; the new forecasts, and the constants as YAML."""
    lines, rows = [], list(checked.rows)
    for recipe, machine in sorted({(row.job.recipe.name, row.job.hardware.name) for row in rows}):
        own = [row for row in rows if (row.job.recipe.name, row.job.hardware.name) == (recipe, machine)]
        values: Values = {}
        for names, predict, measured in (
            (TIME, speed, lambda row: row.tokens_per_second),
            (MEMORY, first_rank_gib, lambda row: row.memory_gib),
        ):
            count = sum(row.ran and bool(measured(row)) for row in own)
            # As many constants as rows can tell apart: one in three rows.
            chosen = names[: max(1, min(len(names), count // 3))] if count else ()
            start = {name: float(getattr(own[0].job.constants, name)) for name in chosen}
            if start:
                values |= fit(own, start, predict, measured)
        lines.append(f"# recipe {recipe}\n{machine}: {{{', '.join(f'{name}: {value:.4g}' for name, value in values.items())}}}")
        rows = [replace(row, job=with_values(row.job, values)) if row in own else row for row in rows]
    return Checked(rows, [forecast(row.job) for row in rows], checked.skipped), "\n".join(lines)
