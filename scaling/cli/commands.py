"""`python -m scaling`: the commands. Everything heavy is imported when a command runs, so that `--help` answers at once."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import UserError, WorkFailed
from scaling.cli import options
from scaling.laws import law_names

if TYPE_CHECKING:
    import pandas as pd

    from scaling.fit.result import Fit
    from scaling.laws import Law
    from scaling.laws.base.columns import Columns

_COMMANDS = ("table", "fit", "predict", "plan", "report", "simulate")

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Scaling laws: fit them to runs, see how far to trust them, predict, plan.",
)

_Data = Annotated[
    list[Path],
    typer.Argument(help="run directories (or folders of them), .csv, .tsv, .parquet, .jsonl, offline wandb directories"),
]
_LawName = Annotated[str, typer.Argument(metavar="LAW", help=f"one of: {', '.join(law_names())}; or one of --law-file")]
_Fits = Annotated[list[Path], typer.Argument(metavar="FIT.json...", help="what `scaling fit --out` or `--json` wrote")]
_Rename = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NEW=OLD", help="call a column NEW; OLD is a column or an expression: 'tokens=billions*1e9'. May be repeated"
    ),
]
_Where = Annotated[
    str | None,
    typer.Option(metavar="EXPR", help="which rows, as in a pandas query: 'tokens_per_parameter == 20 and parameters < 1e9'"),
]
_LawFile = Annotated[
    Path | None, typer.Option(metavar="FILE.py", help="a Python file that defines laws of your own (docs/laws.md)")
]
_LossFit = Annotated[
    Path | None,
    typer.Option(
        metavar="FIT.json",
        help="for a law that takes the loss: forecasts take the one that this fit predicts, not a measured one",
    ),
]
_Objective = Annotated[str | None, typer.Option(metavar="NAME", help="huber-log or least-squares; the law's own unless given")]
_Json = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]
_Seed = Annotated[int, typer.Option(help="of random starts and draws", min=0)]


@app.command()
def table(
    runs: _Data,
    where: _Where = None,
    rename: _Rename = None,
    columns: Annotated[str | None, typer.Option(metavar="A,B,...", help="columns to show; the usual ones unless given")] = None,
    sort: Annotated[str, typer.Option(metavar="COLUMN", help="order of the rows")] = "flops",
    format: Annotated[str, typer.Option(help="terminal, csv, markdown or json")] = "terminal",
    out: Annotated[Path | None, typer.Option(help="write to this file instead; .csv, .md or .json says the format")] = None,
    json: _Json = False,
) -> None:
    """Show runs as a table: terminal, CSV or Markdown."""
    from scaling.runs.read import read_runs, select
    from scaling.show import tables

    kinds = {".csv": "csv", ".md": "markdown", ".json": "json"}
    if options.file_of_kind(out, *kinds) is not None and out is not None:
        format = kinds[out.suffix.lower()]
    format = "json" if json else format
    if format not in ("terminal", "csv", "markdown", "json"):
        raise UserError(f"--format {format}: choose terminal, csv, markdown or json")
    frame = read_runs(runs, rename or [])
    frame = frame[select(frame, where, "--where")]
    tables.runs_table(frame, columns, sort, format, out)


@app.command()
def fit(
    law: _LawName,
    data: _Data,
    where: _Where = None,
    holdout: Annotated[
        str | None, typer.Option(metavar="EXPR", help="rows to predict instead of fitting, chosen from all usable rows")
    ] = None,
    loss: Annotated[str | None, typer.Option(metavar="COLUMN", help="the column that is the loss (nats per token)")] = None,
    error: Annotated[str | None, typer.Option(metavar="COLUMN", help="the column that is the error (1 - accuracy)")] = None,
    rename: _Rename = None,
    objective: _Objective = None,
    delta: Annotated[float | None, typer.Option(help="of Huber's loss, in log loss: 1e-3 unless given")] = None,
    fix: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="a parameter that is known. May be repeated")
    ] = None,
    weights: Annotated[str | None, typer.Option(metavar="COLUMN", help="how much each run counts (1 / variance)")] = None,
    group: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="rows equal in it are points of one run (checkpoints); 'none': every row is a run"),
    ] = None,
    loss_fit: _LossFit = None,
    bootstrap: Annotated[int, typer.Option(metavar="N", help="draws for the intervals; 0: none", min=0, max=100_000)] = 1000,
    seed: _Seed = 0,
    law_file: _LawFile = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="write DIR/fit.json (for predict, plan, report)")] = None,
    json: _Json = False,
) -> None:
    """Fit a law to runs, with intervals, held-out forecasts, and warnings about what the runs cannot determine."""
    from scaling.fit.fitting import fit as fit_law
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
    fitted = fit_law(
        chosen_law, frame, chosen=chosen, held_out=held, objective=options.objective(objective),
        delta=options.delta(delta, objective or chosen_law.objective),
        fixed=options.named_numbers(fix, "--fix"), weights=weights, group=group, bootstrap=bootstrap, seed=seed,
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
def predict(
    fits: _Fits,
    parameters: Annotated[float | None, typer.Option(help="of the model, counted as in the fitted runs")] = None,
    tokens: Annotated[float | None, typer.Option(help="of training")] = None,
    flops: Annotated[float | None, typer.Option(help="in place of --tokens (6 parameters tokens), or of both")] = None,
    bits: Annotated[float | None, typer.Option(help="width of a weight")] = None,
    qat_fraction: Annotated[
        float | None, typer.Option(help="share of the tokens that is quantization-aware, above 0 and below 1")
    ] = None,
    batch_tokens: Annotated[float | None, typer.Option(help="tokens of an optimizer step")] = None,
    loss: Annotated[float | None, typer.Option(help="a known loss, for a law that takes one")] = None,
    json: _Json = False,
) -> None:
    """Predict a run. A loss fit, given too, says the loss to laws that take one."""
    from scaling.fit.file import read_fit, to_json
    from scaling.fit.predict import predict_run
    from scaling.show import tables

    given = options.numbers({
        "--parameters": parameters, "--tokens": tokens, "--flops": flops, "--bits": bits, "--qat-fraction": qat_fraction,
        "--batch-tokens": batch_tokens, "--loss": loss,
    })  # fmt: skip
    columns = {option.removeprefix("--").replace("-", "_"): value for option, value in given.items()}
    answer = predict_run([read_fit(path) for path in fits], columns)
    if json:
        print(to_json(answer))
    else:
        tables.prediction(answer)


@app.command()
def plan(
    fits: _Fits,
    flops: Annotated[float | None, typer.Option(help="training budget in FLOPs")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="training budget in GPU hours; needs --flops-per-gpu-second")] = None,
    flops_per_gpu_second: Annotated[
        float | None, typer.Option(help="what one GPU really does: peak times MFU, such as 4e14")
    ] = None,
    memory_gib: Annotated[float | None, typer.Option(help="the weights must fit in so much")] = None,
    bits: Annotated[
        str | None, typer.Option(metavar="2,4,6", help="widths of weights to compare; a single one: what the run is to have")
    ] = None,
    inference_tokens: Annotated[
        float | None, typer.Option(help="tokens served in the model's life: the budget then pays for them too")
    ] = None,
    ladder_share: Annotated[float, typer.Option(help="share of the budget for the proposed ladder of cheap runs")] = 0.05,
    batch_tokens: Annotated[
        float | None, typer.Option(help="tokens of an optimizer step, for a fit of the learning rate")
    ] = None,
    json: _Json = False,
) -> None:
    """The best run under a budget, what alternatives cost, and which cheap runs would sharpen the forecast."""
    from scaling.fit.file import read_fit, to_json
    from scaling.plan.plan import plan as plan_run
    from scaling.show import tables
    from scaling.show.plain import plan_plain

    budget = options.budget(flops, gpu_hours, flops_per_gpu_second)
    options.numbers({
        "--memory-gib": memory_gib, "--inference-tokens": inference_tokens, "--ladder-share": ladder_share,
        "--batch-tokens": batch_tokens,
    })  # fmt: skip
    widths = options.widths(bits)
    answer = plan_run(
        [read_fit(path) for path in fits],
        budget,
        memory_gib=memory_gib,
        bits=widths,
        inference_tokens=inference_tokens,
        ladder_share=ladder_share,
        batch_tokens=batch_tokens,
    )
    if json:
        print(to_json(plan_plain(answer)))
    else:
        tables.plan_table(answer)


@app.command()
def report(
    fits: _Fits,
    out: Annotated[
        Path, typer.Option(metavar="FILE.html", help="one self-contained page; its pictures also lie beside it as PNG")
    ] = Path("report.html"),
) -> None:
    """Pictures of fits: law against data, residuals, intervals, held-out runs, warnings."""
    from scaling.fit.file import read_fit
    from scaling.show.report import write_report

    options.file_of_kind(out, ".html")
    for path in write_report([read_fit(path) for path in fits], out):
        print(path)


@app.command()
def simulate(
    law: _LawName,
    sets: Annotated[int, typer.Option(help="simulated studies", min=1)] = 100,
    truth: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="a true parameter. May be repeated")] = None,
    noise: Annotated[
        float | None, typer.Option(help="standard deviation (log of the loss, or the target's unit)", min=0.0)
    ] = None,
    design: Annotated[
        list[Path] | None, typer.Option(metavar="DATA", help="take the runs of a study from a file; the law's own unless given")
    ] = None,
    where: _Where = None,
    rename: _Rename = None,
    objective: _Objective = None,
    bootstrap: Annotated[int, typer.Option(metavar="N", help="draws of each fit")] = 400,
    seed: _Seed = 0,
    law_file: _LawFile = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="write one simulated study, fit nothing")] = None,
    json: _Json = False,
) -> None:
    """Draw runs from a known law with noise: is it recovered, and how often do intervals cover?"""
    from scaling.fit.file import to_json
    from scaling.fit.simulate import design_from
    from scaling.fit.simulate import simulate as simulate_law
    from scaling.laws import find_law
    from scaling.runs.read import read_runs, select
    from scaling.show import tables
    from scaling.show.plain import simulation_plain

    chosen = find_law(law, law_file)
    values = options.named_numbers(truth, "--truth")
    options.file_of_kind(out, ".csv")
    options.draws(bootstrap, none_allowed=False)
    columns = None
    if design:
        frame = read_runs(design, rename or [])
        columns = design_from(frame[select(frame, where, "--where")], chosen)
    if out is not None:
        _write_study(chosen, values, columns, noise, seed, out)
        return
    with tables.progress(sets) as advance:
        simulated = simulate_law(
            chosen, truth=values, columns=columns, noise=noise, sets=sets, bootstrap=bootstrap, seed=seed,
            objective=options.objective(objective), progress=advance,
        )  # fmt: skip
    if json:
        print(to_json(simulation_plain(simulated)))
    else:
        tables.simulation(simulated)


def _write_study(
    law: "Law", truth: dict[str, float], columns: "Columns | None", noise: float | None, seed: int, out: Path
) -> None:
    import numpy as np

    from scaling.fit.simulate import study
    from scaling.show.destination import writing

    law.check_values(truth, "--truth")
    runs = columns or (law.design() if law.design else {})
    drawn = study(law, {**law.truth, **truth}, runs, law.noise if noise is None else noise, np.random.default_rng(seed))
    with writing(out):
        drawn.to_csv(out, index=False)
    print(f"written: {out} ({len(drawn)} runs)", file=sys.stderr)


def main(words: list[str]) -> int:
    """Run a command line. Returns the exit code: 0 done, 1 the work failed, 2 the request is wrong, 130 interrupted."""
    try:
        # What typer returns is the code of an ending it has caught itself: --help's 0, or 130 for an interrupt.
        code = app(args=words or ["--help"], prog_name="scaling", standalone_mode=False)
        sys.stdout.flush()
    except (UserError, WorkFailed) as error:
        return _refused(str(error), error.exit_code)
    except BrokenPipeError:  # whoever reads has enough; Python would complain once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _refused(f"{error.filename or 'standard output'}: {error.strerror or error}", 1)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        # typer's own complaints about words; its class has another home in every version of typer.
        if not hasattr(error, "format_message"):
            raise
        command = " ".join(["scaling", *words[:1]] if words and words[0] in _COMMANDS else ["scaling"])
        return _refused(f"{error.format_message()}\n`{command} --help` says what can be typed", 2)
    if code == 130:
        print("interrupted", file=sys.stderr)
        return 130
    return 0 if words else 2


def _refused(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
