"""What people see in a terminal.

Results go to standard output, remarks to standard error.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from common.errors import UserError
from scaling.fit.compare import Row
from scaling.fit.doubts import excess, furthest
from scaling.fit.file import to_json
from scaling.fit.result import Fit
from scaling.fit.simulate import Simulation
from scaling.laws.base.columns import FULL_BITS
from scaling.plan.choice import Choice, Plan
from scaling.plan.train_command import command
from scaling.runs.rows import LeftOut, usable_rows
from scaling.show.destination import writing
from scaling.show.numbers import number
from scaling.show.plain import plan_plain, spreadsheet_cell

_USUAL = (
    "name", "status", "parameters", "tokens", "tokens_per_parameter", "flops", "loss", "bits_per_byte", "error", "bits",
    "qat_fraction", "peak_learning_rate", "wall_seconds",
)  # fmt: skip
_UNITS = {"loss": " nats per token", "parameters": " parameters"}
_PIPED_WIDTH = 150
_LISTED = 8
_MOST_ROWS = 1000  # rich takes minutes for a million
_HELD_OUT = 12


def _console(*, errors: bool = False) -> Console:
    console = Console(stderr=errors, highlight=False, soft_wrap=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:  # which says how wide what reads a pipe is
        console.width = _PIPED_WIDTH
    return console


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
    made = Table(title=Text(title), title_style="bold", title_justify="left")
    for index, heading in enumerate(headings):
        made.add_column(Text(heading), justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))  # names are foreign words: rich must not read markup in them
    return made


def runs_table(frame: pd.DataFrame, columns: str | None, sort: str, format: str, out: Path | None) -> None:
    """Print or write runs."""
    frame = frame.sort_values(sort, kind="stable") if sort in frame.columns else frame
    written = _as_written(frame)
    usual = [name for name in _USUAL if name in frame.columns and written[name].notna().any()]
    if "qat_fraction" in usual and frame["qat_fraction"].max() == 0:  # nobody quantized
        usual.remove("qat_fraction")
    shown = [word.strip() for word in columns.split(",")] if columns else usual
    for column in [*shown, *([sort] if sort != "flops" else [])]:
        if column not in frame.columns:
            raise UserError(f"no column {column!r}; columns: {', '.join(map(str, frame.columns))}")
    chosen = written[shown]
    if format == "terminal" and out is None:
        first = chosen.iloc[:_MOST_ROWS]
        rows = [[number(None if pd.isna(value) else value) for value in row] for row in first.itertuples(index=False)]
        title = f"{len(chosen):,} run{'s' * (len(chosen) != 1)}"
        if len(first) < len(chosen):
            title += f", the first {len(first):,} by {sort} (all of them: --out runs.csv)"
        _console().print(_table(title, [name.replace("_", " ") for name in shown], rows))
    else:
        _write(_as_text(chosen, format), out)
    needed = [name for name in ("parameters", "tokens", "loss") if name in frame.columns]
    left_out(usable_rows(frame, needed)[1], "no law of size, tokens and loss can use")


def _as_written(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with the text that stands where a number should."""
    odd = {column: texts for column, texts in frame.attrs.get("not_numbers", {}).items() if column in frame.columns}
    written = frame.astype(dict.fromkeys(odd, object))
    for column, texts in odd.items():
        for index in frame.index.intersection(list(texts)):
            written.at[index, column] = texts[index]
    return written


def _as_text(frame: pd.DataFrame, format: str) -> str:
    if format == "json":
        return to_json({"runs": frame.astype(object).where(frame.notna(), None).to_dict("records")}) + "\n"
    if format in ("csv", "terminal"):
        safe = frame.astype(object).map(spreadsheet_cell) if _has_texts(frame) else frame
        return safe.rename(columns=spreadsheet_cell).to_csv(index=False)
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|" + "---|" * len(frame.columns)]
    lines += [
        "| " + " | ".join(number(None if pd.isna(value) else value) for value in row) + " |"
        for row in frame.itertuples(index=False)
    ]
    return "\n".join(lines) + "\n"


def _has_texts(frame: pd.DataFrame) -> bool:
    return any(not pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes)


def _write(text: str, out: Path | None) -> None:
    if out is None:
        sys.stdout.write(text)
        return
    with writing(out):
        out.write_text(text, encoding="utf-8")
    print(f"written: {out}", file=sys.stderr)


def left_out(rows: Sequence[LeftOut], what: str = "left out:") -> None:
    """List rows that are not used, with the reason, on standard error."""
    if not rows:
        return
    console = _console(errors=True)
    console.print(f"{len(rows)} row{'s' * (len(rows) > 1)} {what}", markup=False)
    for row in rows[:_LISTED]:
        console.print(f"  {row.name}: {row.reason}", markup=False)
    if len(rows) > _LISTED:
        console.print(f"  ... and {len(rows) - _LISTED} more (all of them in --json)", markup=False)


def fit_table(fit: Fit, plain: Mapping[str, Any]) -> None:
    """A fit: whether to doubt it, parameters with intervals, how well it fits, held-out runs, roll-outs, warnings."""
    console = _console()
    what = "optima" if fit.law.optimum_of else "runs"
    for number_of, text in enumerate(fit.doubts):
        lead = f"Doubt this {fit.law.name} fit" if number_of == 0 else "And"
        console.print(f"{lead}: {text}.", markup=False, soft_wrap=True, style="bold")
    points = plain["n"] if fit.labels.max() + 1 == plain["n"] else f"{plain['n']} points of {fit.labels.max() + 1}"
    console.print(f"[bold]{escape(fit.law.name)}[/bold], {points} {what}", highlight=False)
    lead_lines = [fit.law.text, f"({fit.law.source})" if fit.law.source else ""]
    if any(lead_lines):
        console.print("   ".join(word for word in lead_lines if word), markup=False)
    rows = [
        [name, number(entry["value"]), number(entry["low"]), number(entry["high"]) + (" fixed" if name in fit.fixed else "")]
        for name, entry in plain["parameters"].items()
    ]
    console.print(_table("", ["parameter", "value", "95 % low", "high"], rows))
    metrics, intervals = plain["metrics"], plain["intervals"]
    share = metrics["relative_error"]
    console.print(
        f"{plain['objective']['name']} {fit.objective_value:.6g}; "
        f"mean absolute error {number(metrics['mae'])}{_UNITS.get(fit.law.target, '')}"
        f"{'' if math.isnan(share) else f' ({100 * share:.2g} %)'}, R2 {metrics['r2']:.5f}; "
        f"{fit.starts_reached} of {fit.starts_tried} starts reached this optimum; "
        f"intervals: {intervals['method']}, {intervals['draws']} draws",
        markup=False,
    )
    if fit.roll_outs:
        console.print(_roll_outs(fit))
    if plain["holdout"]:
        _held_out(console, fit, plain)
    left_out(fit.left_out)
    warnings(fit.warnings)


def _roll_outs(fit: Fit) -> Table:
    """In every direction the roll-out that leaves out the fewest runs."""
    rows = [
        [
            number(one.limit), one.column.replace("_", " "), str(one.runs), f"{math.exp(one.beyond):.3g} times",
            f"{100 * one.miss:+.2f} %", f"{excess(one):.1f} times",
        ]
        for one in furthest(fit)
    ]  # fmt: skip
    headings = ["fitted up to", "of", "runs beyond", "how far", "they lie off", "of what noise explains"]
    return _table("roll-outs: the largest fitted runs, forecast by the others", headings, rows)


def _held_out(console: Console, fit: Fit, plain: Mapping[str, Any]) -> None:
    """Held-out runs, of many those furthest off; and how they lie about their intervals."""
    furthest = sorted(plain["holdout"], key=lambda row: -abs(row["relative_error"] or 0.0))[:_HELD_OUT]
    shown = [row for row in plain["holdout"] if row in furthest]
    rows = [
        [
            row["name"], number(row["actual"]), number(row["predicted"]), number(row["low"]), number(row["high"]),
            f"{100 * row['relative_error']:+.2f} %", {True: "yes", False: "NO", None: "-"}[row["covered"]],
        ]
        for row in shown
    ]  # fmt: skip
    headings = ["held out", "actual", "predicted", "95 % low", "high", "error", "inside"]
    count = len(plain["holdout"])
    title = f"{fit.law.target} of runs that were not fitted"
    title += f": the {len(shown)} furthest off of {count} (all of them in --json)" if len(shown) < count else ""
    console.print(_table(title, headings, rows))
    summary = plain["holdout_summary"]
    text = f"{count} held out: "
    if summary["intervals"]:
        inside, below, above = (100 * summary[key] for key in ("inside", "below", "above"))
        text += f"intervals hold {inside:.0f} % of {summary['intervals']}, {below:.0f} % lie below, {above:.0f} % above; "
    text += f"median error {100 * summary['median_error']:.2f} %"
    if not math.isnan(summary["median_naive_error"]):
        text += f" (a plane through the nearest runs: {100 * summary['median_naive_error']:.2f} %)"
    console.print(text, markup=False)
    if "loss" in fit.law.columns:
        source = (
            "the loss that the loss fit predicts" if fit.chain else "the measured loss (--loss-fit FIT.json chains a loss law)"
        )
        console.print(f"predicted from {source}", markup=False)


def warnings(texts: Sequence[str]) -> None:
    """Warnings, on standard error. Where the table goes into a file, a line of it says how many."""
    if texts and not _console().is_terminal:
        print(f"{len(texts)} warning{'s' * (len(texts) > 1)} on standard error")
    console = _console(errors=True)
    for text in texts:
        console.print(f"warning: {text}", markup=False, soft_wrap=True)


def prediction(answer: Mapping[str, Any]) -> None:
    """What `scaling predict` says."""
    rows = [
        [row["law"], row["target"], *(number(row[key]) for key in ("value", "low", "high", "law_low", "law_high"))]
        for row in answer["predictions"]
    ]
    headings = ["law", "predicts", "value", "95 % low", "high", "law low", "law high"]
    console = _console()
    for text in answer["doubts"]:
        console.print(text, markup=False, soft_wrap=True, style="bold")
    console.print(_table("low and high: where a new run lies; law low and high: where the law lies", headings, rows, left=2))
    warnings(answer["warnings"])


def comparison(rows: Sequence[Row], verdict: str) -> None:
    """What `scaling compare` says."""
    console = _console()
    console.print(f"{verdict}.", markup=False, soft_wrap=True, style="bold")
    directions = list(dict.fromkeys(name for row in rows for name in row.roll_outs))
    cells = [
        [
            row.law, str(row.numbers), f"{100 * row.error:.2f} %", f"+{row.aic:.1f}",
            *(f"{100 * row.roll_outs[name]:.2f} %" if name in row.roll_outs else "-" for name in directions),
        ]
        for row in rows
    ]  # fmt: skip
    headings = ["law", "numbers", "error", "AIC", *(f"by {name.replace('_', ' ')}" for name in directions)]
    console.print(_table("error of the fitted runs; of the largest runs, forecast by the others", headings, cells))
    for row in rows:
        if row.doubt:
            console.print(f"doubt {row.law}: {row.doubt}", markup=False, soft_wrap=True)


def plan_table(plan: Plan) -> None:
    """A plan, as tables and as commands to type."""
    console, best, plain = _console(), plan.optimum, plan_plain(plan)
    size = number(best.parameters)
    if plan.parameters_range:
        size += f" ({number(plan.parameters_range[0])} to {number(plan.parameters_range[1])})"
    width = "" if best.bits is None else f" of {best.bits:g} bits"
    serving = f" for training and serving {plan.budget.served:.4g} tokens" if plan.budget.served else ""
    for text in plan.doubts:
        console.print(text, markup=False, soft_wrap=True, style="bold")
    if plan.near is not None:
        near, ratio = plan.near, plan.near.tokens / plan.near.parameters
        text = (
            f"Near the fitted runs: {number(near.parameters)} parameters on {number(near.tokens)} tokens, {ratio:.3g} for each"
        )
        loss = "" if near.loss is None else f"; loss {number(near.loss)} ({number(near.low)} to {number(near.high)}, 95 %)"
        console.print(text + loss, markup=False, soft_wrap=True, style="bold")
    if best.far:
        where = ", ".join(name.replace("_", " ") for name in best.far)
        text = f"An extrapolation: the law's own optimum lies far outside the fitted runs in {where}. Train cheaper runs first."
        console.print(text, markup=False, soft_wrap=True, style="bold")
    console.print(
        f"[bold]{plan.budget.flops:.4g} FLOPs[/bold]{serving}: best {size} parameters{width} on {number(best.tokens)} tokens",
        highlight=False,
    )
    if best.loss is not None:
        console.print(f"loss {number(best.loss)} ({number(best.low)} to {number(best.high)}, 95 %)", markup=False)
    if best.error is not None:
        console.print(f"error on tasks {number(best.error)}", markup=False)
    if best.learning_rate is not None:
        low, high = number(best.learning_rate_low), number(best.learning_rate_high)
        console.print(f"peak learning rate {number(best.learning_rate)} ({low} to {high}, 95 %)", markup=False)
    if plan.alternatives:
        console.print(_choices("the same compute otherwise", plan.alternatives))
    if plan.widths:
        console.print(_choices("bit widths", plan.widths))
    if plan.ladder:
        console.print(_choices("a ladder of cheap runs", plan.ladder))
        cost = sum(run.flops for run in plan.ladder)
        console.print(
            f"together {cost:.3g} FLOPs ({100 * cost / plan.budget.flops:.2g} % of the budget); they would narrow the law "
            f"at the optimum from +-{number(plan.ladder_before, 3)} to about +-{number(plan.ladder_after, 3)}",
            markup=False,
        )
    else:
        console.print(plan.no_ladder, markup=False)
    console.print("\nto type:", markup=False)
    widths = [run for run in plain["bits"] if run.get("bits") != best.bits]
    leads = [plain["near"]] if plain["near"] is not None else []
    for run in (*leads, plain["optimum"], *widths, *plain["ladder"]["runs"]):
        print(command(run["overrides"]))
    if not plan.context.get("config"):
        batch = "" if plan.batch_tokens else ", batch"
        console.print(f"(data, tokenizer{batch} and other settings are not in the fitted runs: add them)", markup=False)
    warnings(plan.warnings)


def _choices(title: str, choices: Sequence[Choice]) -> Table:
    widths = {choice.bits or FULL_BITS for choice in choices}
    at = f" at {widths.pop():g} bits" if len(widths) == 1 else ""
    columns: dict[str, Callable[[Choice], str]] = {
        "": lambda choice: choice.name,
        "parameters": lambda choice: number(choice.parameters),
        "tokens": lambda choice: number(choice.tokens),
        "loss": lambda choice: number(choice.loss),
        "95 %": lambda choice: "-" if choice.low is None else f"{number(choice.low)} to {number(choice.high)}",
        "loss above best": lambda choice: "-" if choice.cost is None else f"+{choice.cost:.4f}",
        "compute lost": lambda choice: "-" if choice.wasted is None else f"{100 * choice.wasted:.0f} %",
        "QAT fraction": lambda choice: number(choice.qat_fraction),
        f"GiB{at}": lambda choice: number(choice.memory_gib),
        "far outside the runs": lambda choice: ", ".join(choice.far) or "-",
    }
    rows = {name: [show(choice) for choice in choices] for name, show in columns.items()}
    used = [name for name, cells in rows.items() if name in ("", "parameters", "tokens") or any(cell != "-" for cell in cells)]
    return _table(title, used, [[rows[name][index] for name in used] for index in range(len(choices))])


def simulation(simulated: Simulation) -> None:
    """The results of a simulation."""
    console = _console()
    what = "optima" if simulated.law.optimum_of else "runs"
    console.print(
        f"{simulated.law.name}: {simulated.sets} studies of {simulated.runs} {what}, noise {simulated.noise:g}; "
        f"intervals: {simulated.method}; {simulated.seconds:.1f} s",
        markup=False,
    )
    rows = [
        [name, number(simulated.truth[name]), number(simulated.median[name]), _covered(share)]
        for name, share in simulated.coverage.items()
    ]
    rows.append(["forecast far beyond: the law", "", "", _covered(simulated.law_coverage)])
    if not simulated.law.optimum_of:
        rows.append(["forecast far beyond: a run", "", "", _covered(simulated.run_coverage)])
    console.print(_table("95 % intervals", ["", "true", "median estimate", "covered"], rows))
    if simulated.fraction_mae is not None:
        console.print(f"best QAT fraction: mean absolute error {simulated.fraction_mae:.4f}", markup=False)
    if simulated.failed:
        console.print(f"{simulated.failed} studies could not be fitted", markup=False)
    for text, share in simulated.warned.items():
        console.print(f"  warned in {100 * share:.0f} % of the studies: {text} ...", markup=False)


def _covered(share: float | None) -> str:
    return "no interval" if share is None else f"{100 * share:.1f} %"


@contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's standard error, nothing elsewhere."""
    from rich.progress import Progress

    console = _console(errors=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("studies", total=total)
        yield lambda done: bar.update(task, completed=done)
