"""`scaling fit` and `scaling compare`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import UserError
from scaling.cli import options
from scaling.cli.app import (
    BestPer,
    Data,
    Group,
    Json,
    LawFile,
    LawName,
    LossColumn,
    LossFit,
    Objective,
    Rename,
    Seed,
    Where,
    app,
)

if TYPE_CHECKING:
    import pandas as pd

    from scaling.fit.result import Fit
    from scaling.laws import Law


@app.command()
def fit(
    law: LawName,
    data: Data,
    where: Where = None,
    holdout: Annotated[
        str | None, typer.Option(metavar="EXPR", help="rows to predict instead of fitting, chosen from all usable rows")
    ] = None,
    loss: LossColumn = None,
    error: Annotated[str | None, typer.Option(metavar="COLUMN", help="the column that is the error (1 - accuracy)")] = None,
    rename: Rename = None,
    objective: Objective = None,
    delta: Annotated[float | None, typer.Option(help="of Huber's loss, in log loss: 1e-3 unless given")] = None,
    fix: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="a parameter that is known. May be repeated")
    ] = None,
    weights: Annotated[str | None, typer.Option(metavar="COLUMN", help="how much each run counts (1 / variance)")] = None,
    group: Group = None,
    best_per: BestPer = None,
    roll_out: Annotated[
        bool,
        typer.Option(
            help="widen forecasts by the law's own error, as forecasts of the largest fitted runs by the others show it"
        ),
    ] = True,
    loss_fit: LossFit = None,
    bootstrap: Annotated[int, typer.Option(metavar="N", help="draws for the intervals; 0: none", min=0, max=100_000)] = 1000,
    seed: Seed = 0,
    law_file: LawFile = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="write DIR/fit.json (for predict, plan, report)")] = None,
    json: Json = False,
) -> None:
    """Fit a law to runs, with intervals, held-out forecasts, and warnings about what the runs cannot determine."""
    from scaling.fit.fitting import fit as fit_law
    from scaling.fit.large import SAMPLE
    from scaling.laws import find_law
    from scaling.plan.train_command import common_context
    from scaling.runs.columns import SOURCE
    from scaling.runs.read import read_runs

    _refuse_another_laws(out, law)
    options.draws(bootstrap, none_allowed=True)
    chosen_law = find_law(law, law_file)
    chain = _chain(chosen_law, loss_fit)
    frame = read_runs(data, rename or [], {"loss": loss, "error": error})
    _check_columns(chosen_law, frame, data, weights, chain if holdout is not None else None)
    chosen, held = _rows(frame, where, holdout)
    if len(frame) > SAMPLE:
        print(f"fitting {law} to {len(frame):,} rows: about half a minute for every million ...", file=sys.stderr)
    fitted = fit_law(
        chosen_law, frame, chosen=chosen, held_out=held, objective=options.objective(objective),
        delta=options.delta(delta, objective or chosen_law.objective),
        fixed=options.named_numbers(fix, "--fix"), weights=weights, group=group,
        best_per=options.names(best_per, "--best-per"), roll_out=roll_out, bootstrap=bootstrap, seed=seed,
        law_file=str(law_file.resolve()) if law_file else None, chain=chain,
        context=common_context(frame[chosen][SOURCE].astype(str)),
    )  # fmt: skip
    _give(fitted, out, json)


def _refuse_another_laws(out: Path | None, law: str) -> None:
    """A fit is not written over that of another law."""
    from scaling.fit.file import name_of_law

    before = None if out is None else name_of_law(out / "fit.json")
    if out is not None and before not in (None, law):
        raise UserError(f"--out {out} holds a fit of {before}: give another --out, or remove {out / 'fit.json'}")


def _give(fitted: "Fit", out: Path | None, json: bool) -> None:
    """Write a fit and print it."""
    from common.files import write_atomically
    from scaling.fit.file import as_plain, to_json
    from scaling.show import tables
    from scaling.show.destination import writing

    plain, file = as_plain(fitted), None if out is None else out / "fit.json"
    if file is not None:
        with writing(file):
            write_atomically(file, to_json(plain) + "\n")
    if json:
        print(to_json(plain))
    else:
        tables.fit_table(fitted, plain)
    if file is not None:
        print(f"written: {file}", file=sys.stderr)


def _chain(law: "Law", loss_fit: Path | None) -> "Fit | None":
    """The fit of --loss-fit."""
    from scaling.fit.file import read_fit

    if loss_fit is None:
        return None
    chain = read_fit(loss_fit)
    if "loss" not in law.columns or chain.law.target != "loss":
        raise UserError(
            f"--loss-fit needs a law that takes the loss, and a fit of a loss law: not {law.name} and {chain.law.name}"
        )
    return chain


def _check_columns(law: "Law", frame: "pd.DataFrame", data: list[Path], weights: str | None, chain: "Fit | None") -> None:
    """Refuse runs without what the law, its weights and, for held-out runs, its chain take."""
    from scaling.fit.fitting import needed_columns
    from scaling.runs.columns import missing_columns

    missing_columns(frame, needed_columns(law, frame), law.name, data)
    if weights is not None and weights not in frame.columns:
        raise UserError(f"--weights {weights}: no such column; columns: {', '.join(map(str, frame.columns))}")
    if chain is not None:
        missing_columns(frame, chain.law.columns, f"{chain.law.name} (--loss-fit)", data)


def _rows(frame: "pd.DataFrame", where: str | None, holdout: str | None) -> "tuple[pd.Series, pd.Series | None]":
    """Which rows to fit and which to predict."""
    from scaling.runs.read import select

    chosen = select(frame, where, "--where")
    if holdout is None:
        return chosen, None
    held = select(frame, holdout, "--holdout")
    if not (chosen & ~held).any():
        raise UserError(f"--holdout {holdout!r} leaves no run to fit")
    return chosen & ~held, held


@app.command()
def compare(
    words: Annotated[
        list[str], typer.Argument(metavar="LAW LAW... DATA...", help="two laws or more, then runs as `fit` takes them")
    ],
    where: Where = None,
    loss: LossColumn = None,
    rename: Rename = None,
    group: Group = None,
    best_per: BestPer = None,
    law_file: LawFile = None,
    json: Json = False,
) -> None:
    """Which law forecasts the largest of these runs best, and can the runs tell the laws apart?"""
    import dataclasses

    from scaling.fit.compare import compare as compare_fits
    from scaling.fit.file import to_json
    from scaling.fit.fitting import fit as fit_law
    from scaling.laws import find_law
    from scaling.runs.read import read_runs, select
    from scaling.show import tables

    names = [word for word in words if not Path(word).exists()]
    data = [Path(word) for word in words if Path(word).exists()]
    laws = [find_law(name, law_file) for name in names]
    if len(laws) < 2 or not data:
        raise UserError("compare takes two laws or more, then runs: scaling compare LAW LAW runs.csv")
    frame = read_runs(data, rename or [], {"loss": loss})
    for law in laws:
        _check_columns(law, frame, data, None, None)
    chosen = select(frame, where, "--where")
    fits = [
        fit_law(
            law, frame, chosen=chosen, objective="huber-log", group=group, bootstrap=0,
            best_per=options.names(best_per, "--best-per"),
        )
        for law in laws
    ]  # fmt: skip
    rows, verdict = compare_fits(fits)
    if json:
        print(to_json({"laws": [dataclasses.asdict(row) for row in rows], "verdict": verdict}))
    else:
        tables.comparison(rows, verdict)
