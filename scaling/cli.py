"""`python -m scaling`: the commands. Everything heavy is imported when a command runs, so that `--help` answers at once."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import UserError, WorkFailed
from scaling import arguments

if TYPE_CHECKING:
    from scaling.fit import Fit

_COMMANDS = ("table", "fit", "predict", "plan", "report", "simulate")
_LAWS = "chinchilla, isoflop, over-training, downstream, qat-fraction, qat-loss, learning-rate"

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Scaling laws: fit them to runs, see how far to trust them, predict, plan.",
)

_Data = Annotated[
    list[Path],
    typer.Argument(help="run directories (or folders of them), .csv, .tsv, .parquet, .jsonl, offline wandb directories"),
]
_LawName = Annotated[str, typer.Argument(metavar="LAW", help=f"one of: {_LAWS}; or one of --law-file")]
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
    from scaling import show
    from scaling.runs import read_runs, select

    kinds = {".csv": "csv", ".md": "markdown", ".json": "json"}
    if arguments.file_of_kind(out, *kinds) is not None and out is not None:
        format = kinds[out.suffix.lower()]
    format = "json" if json else format
    if format not in ("terminal", "csv", "markdown", "json"):
        raise UserError(f"--format {format}: there are terminal, csv, markdown and json")
    frame = read_runs(runs, rename or [])
    frame = frame[select(frame, where, "--where")]
    show.runs_table(frame, columns, sort, format, out)


@app.command()
def fit(
    law: _LawName,
    data: _Data,
    where: _Where = None,
    holdout: Annotated[
        str | None, typer.Option(metavar="EXPR", help="rows to predict instead of fitting, chosen from all usable rows")
    ] = None,
    loss: Annotated[str | None, typer.Option(metavar="COLUMN", help="the column that is the loss (nats per token)")] = None,
    error: Annotated[str | None, typer.Option(metavar="COLUMN", help="the column that is the error (downstream)")] = None,
    rename: _Rename = None,
    objective: Annotated[
        str | None, typer.Option(metavar="NAME", help="huber-log or least-squares; the law's own unless given")
    ] = None,
    fix: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="a parameter that is known. May be repeated")
    ] = None,
    weights: Annotated[str | None, typer.Option(metavar="COLUMN", help="how much each run counts (1 / variance)")] = None,
    loss_fit: Annotated[
        Path | None,
        typer.Option(metavar="FIT.json", help="downstream: forecasts take the loss that this fit predicts, not a measured one"),
    ] = None,
    bootstrap: Annotated[int, typer.Option(metavar="N", help="draws for the intervals; 0: none", min=0, max=100_000)] = 1000,
    seed: _Seed = 0,
    law_file: _LawFile = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="write DIR/fit.json (for predict, plan, report)")] = None,
    json: _Json = False,
) -> None:
    """Fit a law to runs, with intervals, held-out forecasts, and warnings about what the runs cannot tell."""
    from common.files import write_atomically
    from scaling import show
    from scaling.fit_file import as_plain, name_of_law, to_json

    file = None if out is None else out / "fit.json"
    if file is not None and name_of_law(file) not in (None, law):
        raise UserError(f"--out {out} holds a fit of {name_of_law(file)}: give another --out, or remove {file}")
    arguments.draws(bootstrap, none_allowed=True)
    found = _fit(law, data, where, holdout, loss, error, rename, objective, fix, weights, loss_fit, bootstrap, seed, law_file)
    plain = as_plain(found)
    if file is not None:
        with arguments.writing(file):
            write_atomically(file, to_json(plain) + "\n")
    if json:
        print(to_json(plain))
    else:
        show.fit_table(found, plain)
    if file is not None:
        print(f"written: {file}", file=sys.stderr)


def _fit(
    name: str,
    data: list[Path],
    where: str | None,
    holdout: str | None,
    loss: str | None,
    error: str | None,
    rename: list[str] | None,
    objective: str | None,
    fix: list[str] | None,
    weights: str | None,
    loss_fit: Path | None,
    bootstrap: int,
    seed: int,
    law_file: Path | None,
) -> "Fit":
    from scaling.fit import fit as fit_law
    from scaling.fit import needed_columns
    from scaling.fit_file import read_fit
    from scaling.laws import find_law
    from scaling.overrides import common_context
    from scaling.runs import SOURCE, missing_columns, read_runs, select

    law = find_law(name, law_file)
    chain = read_fit(loss_fit) if loss_fit is not None else None
    if chain is not None and (law.name != "downstream" or chain.law.target != "loss"):
        raise UserError(
            "--loss-fit chains a loss law into downstream; it goes with `scaling fit downstream` and a fit of a loss law"
        )
    frame = read_runs(data, rename or [], {"loss": loss, "error": error})
    missing_columns(frame, needed_columns(law, frame), law.name, data)
    if weights is not None and weights not in frame.columns:
        raise UserError(f"--weights {weights}: there is no such column; there are {', '.join(map(str, frame.columns))}")
    if chain is not None and holdout is not None:
        missing_columns(frame, chain.law.columns, f"{chain.law.name} (--loss-fit)", data)
    chosen, held = select(frame, where, "--where"), None
    if holdout is not None:
        held = select(frame, holdout, "--holdout")
        if not (chosen & ~held).any():
            raise UserError(f"--holdout {holdout!r} leaves no run to fit")
    rows = frame[chosen & ~held] if held is not None else frame[chosen]
    return fit_law(
        law,
        frame,
        chosen=chosen,
        held_out=held,
        objective=arguments.objective(objective),
        fixed=arguments.named_numbers(fix, "--fix"),
        weights=weights,
        bootstrap=bootstrap,
        seed=seed,
        law_file=str(law_file.resolve()) if law_file else None,
        chain=chain,
        context=common_context(rows[SOURCE].astype(str)),
    )


@app.command()
def predict(
    fits: _Fits,
    parameters: Annotated[float | None, typer.Option(help="of the model, counted as in the fitted runs")] = None,
    tokens: Annotated[float | None, typer.Option(help="of training")] = None,
    flops: Annotated[float | None, typer.Option(help="in place of --tokens (6 parameters tokens), or for isoflop")] = None,
    bits: Annotated[float | None, typer.Option(help="width of a weight")] = None,
    qat_fraction: Annotated[
        float | None, typer.Option(help="share of the tokens that is quantization-aware, above 0 and below 1")
    ] = None,
    batch_tokens: Annotated[float | None, typer.Option(help="tokens of an optimizer step (learning-rate)")] = None,
    loss: Annotated[float | None, typer.Option(help="a known loss (downstream)")] = None,
    json: _Json = False,
) -> None:
    """Predict a run. Give a loss fit before a downstream fit to chain them."""
    from scaling import show
    from scaling.fit_file import read_fit, to_json
    from scaling.predict import predict_run

    given = arguments.numbers({
        "--parameters": parameters, "--tokens": tokens, "--flops": flops, "--bits": bits, "--qat-fraction": qat_fraction,
        "--batch-tokens": batch_tokens, "--loss": loss,
    })  # fmt: skip
    columns = {option.removeprefix("--").replace("-", "_"): value for option, value in given.items()}
    answer = predict_run([read_fit(path) for path in fits], columns)
    if json:
        print(to_json(answer))
    else:
        show.prediction(answer)


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
    batch_tokens: Annotated[float | None, typer.Option(help="tokens of an optimizer step, for a learning-rate fit")] = None,
    json: _Json = False,
) -> None:
    """The best run under a budget, what alternatives cost, and which cheap runs would sharpen the forecast."""
    from scaling import show
    from scaling.fit_file import read_fit, to_json
    from scaling.plan import plan as plan_run

    budget = arguments.budget(flops, gpu_hours, flops_per_gpu_second)
    arguments.numbers({
        "--memory-gib": memory_gib, "--inference-tokens": inference_tokens, "--ladder-share": ladder_share,
        "--batch-tokens": batch_tokens,
    })  # fmt: skip
    widths = arguments.widths(bits)
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
        print(to_json(show.plan_plain(answer)))
    else:
        show.plan_table(answer)


@app.command()
def report(
    fits: _Fits,
    out: Annotated[
        Path, typer.Option(metavar="FILE.html", help="one self-contained page; its pictures also lie beside it as PNG")
    ] = Path("report.html"),
) -> None:
    """Pictures of fits: law against data, residuals, intervals, held-out runs, warnings."""
    from scaling.fit_file import read_fit
    from scaling.report import write_report

    arguments.file_of_kind(out, ".html")
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
    objective: Annotated[
        str | None, typer.Option(metavar="NAME", help="huber-log or least-squares; the law's own unless given")
    ] = None,
    bootstrap: Annotated[int, typer.Option(metavar="N", help="draws of each fit")] = 400,
    seed: _Seed = 0,
    law_file: _LawFile = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="write one simulated study, fit nothing")] = None,
    json: _Json = False,
) -> None:
    """Draw runs from a known law with noise: is it recovered, and how often do intervals cover?"""
    import numpy as np

    from scaling import show
    from scaling.fit import check_values
    from scaling.fit_file import to_json
    from scaling.laws import find_law
    from scaling.runs import read_runs, select
    from scaling.simulate import design_from, study
    from scaling.simulate import simulate as simulate_law

    chosen = find_law(law, law_file)
    values = arguments.named_numbers(truth, "--truth")
    arguments.file_of_kind(out, ".csv")
    arguments.draws(bootstrap, none_allowed=False)
    columns = None
    if design:
        frame = read_runs(design, rename or [])
        columns = design_from(frame[select(frame, where, "--where")], chosen)
    if out is not None:
        check_values(chosen, values, "--truth")
        runs = columns or (chosen.design() if chosen.design else {})
        drawn = study(
            chosen, {**chosen.truth, **values}, runs, chosen.noise if noise is None else noise, np.random.default_rng(seed)
        )
        with arguments.writing(out):
            drawn.to_csv(out, index=False)
        print(f"written: {out} ({len(drawn)} runs)", file=sys.stderr)
        return
    with show.progress(sets) as advance:
        found = simulate_law(
            chosen, truth=values, columns=columns, noise=noise, sets=sets, bootstrap=bootstrap, seed=seed,
            objective=arguments.objective(objective), progress=advance,
        )  # fmt: skip
    if json:
        print(to_json(show.simulation_plain(found)))
    else:
        show.simulation(found)


def main(words: list[str]) -> int:
    """Run a command line. Returns the exit code: 0 done, 1 the work failed, 2 the request is wrong, 130 interrupted."""
    try:
        # What typer returns is the code of an ending it has caught itself: --help's 0, or 130 for an interrupt.
        code = app(args=words or ["--help"], prog_name="scaling", standalone_mode=False)
        sys.stdout.flush()
    except (UserError, WorkFailed) as error:
        return _said(str(error), error.exit_code)
    except BrokenPipeError:  # whoever reads has enough; Python would complain once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _said(f"{error.filename or 'standard output'}: {error.strerror or error}", 1)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        # typer's own complaints about words; its class has another home in every version of typer.
        if not hasattr(error, "format_message"):
            raise
        command = " ".join(["scaling", *words[:1]] if words and words[0] in _COMMANDS else ["scaling"])
        return _said(f"{error.format_message()}\n`{command} --help` says what can be typed", 2)
    if code == 130:
        print("interrupted", file=sys.stderr)
        return 130
    return 0 if words else 2


def _said(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
