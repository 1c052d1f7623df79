"""`python -m scaling`: the commands. Everything heavy is imported when a command runs, so that `--help` answers at once."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaling.errors import UserError, WorkFailed

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
    typer.Option(metavar="EXPR", help="which rows: a pandas query, such as 'tokens_per_parameter == 20 and parameters < 1e9'"),
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
    out: Annotated[Path | None, typer.Option(help="write to this file instead (.csv or .md says the format)")] = None,
    json: _Json = False,
) -> None:
    """Show runs as a table: terminal, CSV or Markdown."""
    from scaling import show
    from scaling.runs import read_runs, select

    if out is not None and out.suffix in (".csv", ".md"):
        format = {".csv": "csv", ".md": "markdown"}[out.suffix]
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
    bootstrap: Annotated[int, typer.Option(metavar="N", help="draws for the intervals", min=0, max=100_000)] = 1000,
    seed: _Seed = 0,
    law_file: _LawFile = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="write DIR/fit.json (for predict, plan, report)")] = None,
    json: _Json = False,
) -> None:
    """Fit a law to runs, with intervals, held-out forecasts, and warnings about what the runs cannot tell."""
    from scaling import show
    from scaling.fit_file import as_plain, to_json
    from scaling.record import write_atomically

    found = _fit(law, data, where, holdout, loss, error, rename, objective, fix, weights, loss_fit, bootstrap, seed, law_file)
    plain = as_plain(found)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(out / "fit.json", to_json(plain) + "\n")
        except OSError as problem:
            raise UserError(f"--out {out}: {problem.strerror}") from None
    if json:
        print(to_json(plain))
    else:
        show.fit_table(found, plain)
    if out is not None:
        print(f"written: {out / 'fit.json'}", file=sys.stderr)


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
    if objective not in (None, "huber-log", "least-squares"):
        raise UserError(f"--objective {objective}: there are huber-log and least-squares")
    chain = read_fit(loss_fit) if loss_fit is not None else None
    if chain is not None and (law.name != "downstream" or chain.law.target != "loss"):
        raise UserError(
            "--loss-fit chains a loss law into downstream; it goes with `scaling fit downstream` and a fit of a loss law"
        )
    words = [*(rename or []), *([f"loss={loss}"] if loss else []), *([f"error={error}"] if error else [])]
    frame = read_runs(data, words)
    missing_columns(frame, [*needed_columns(law, frame), *([weights] if weights else [])], law.name, data)
    if chain is not None and holdout is not None:
        missing_columns(frame, chain.law.columns, f"{chain.law.name} (--loss-fit)", data)
    chosen, held = select(frame, where, "--where"), None
    if holdout is not None:
        held = select(frame, holdout, "--holdout")
        if not held.any():
            raise UserError(f"--holdout {holdout!r} chooses none of {len(frame)} runs")
    if not (chosen & ~held if held is not None else chosen).any():
        raise UserError(f"--where {where!r} chooses none of {len(frame)} runs" + (" that --holdout leaves" if holdout else ""))
    rows = frame[chosen & ~held] if held is not None else frame[chosen]
    return fit_law(
        law,
        frame,
        chosen=chosen,
        held_out=held,
        objective=objective,  # type: ignore[arg-type]  # checked above
        fixed=_numbers(fix, "--fix"),
        weights=weights,
        bootstrap=bootstrap,
        seed=seed,
        law_file=str(law_file.resolve()) if law_file else None,
        chain=chain,
        context=common_context(rows[SOURCE].astype(str)),
    )


def _numbers(words: list[str] | None, option: str) -> dict[str, float]:
    """NAME=VALUE words as numbers."""
    numbers = {}
    for word in words or []:
        name, _, value = word.partition("=")
        try:
            numbers[name.strip()] = float(value)
        except ValueError:
            raise UserError(f"{option} {word!r} is not NAME=VALUE with a number, such as {option} E=1.7") from None
    return numbers


@app.command()
def predict(
    fits: _Fits,
    parameters: Annotated[float | None, typer.Option(help="of the model, counted as in the fitted runs")] = None,
    tokens: Annotated[float | None, typer.Option(help="of training")] = None,
    flops: Annotated[float | None, typer.Option(help="in place of --tokens (6 parameters tokens), or for isoflop")] = None,
    bits: Annotated[float | None, typer.Option(help="width of a weight")] = None,
    qat_fraction: Annotated[
        float | None, typer.Option(help="share of the tokens that is quantization-aware, between 0 and 1")
    ] = None,
    batch_tokens: Annotated[float | None, typer.Option(help="tokens of an optimizer step (learning-rate)")] = None,
    loss: Annotated[float | None, typer.Option(help="a known loss (downstream)")] = None,
    json: _Json = False,
) -> None:
    """Predict a run. Give a loss fit before a downstream fit to chain them."""
    from scaling import show
    from scaling.fit_file import read_fit, to_json
    from scaling.predict import predict_run

    given = {
        "parameters": parameters, "tokens": tokens, "flops": flops, "bits": bits, "qat_fraction": qat_fraction,
        "batch_tokens": batch_tokens, "loss": loss,
    }  # fmt: skip
    answer = predict_run([read_fit(path) for path in fits], {name: value for name, value in given.items() if value is not None})
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
    bits: Annotated[str | None, typer.Option(metavar="2,4,6", help="widths of weights to compare")] = None,
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

    budget = _budget(flops, gpu_hours, flops_per_gpu_second)
    for option, value in (
        ("--memory-gib", memory_gib),
        ("--inference-tokens", inference_tokens),
        ("--ladder-share", ladder_share),
    ):
        if value is not None and not value > 0:
            raise UserError(f"{option} {value:g} must be above 0")
    try:
        widths = [float(word) for word in bits.split(",")] if bits else []
    except ValueError:
        raise UserError(f"--bits {bits!r} is no list of numbers, such as 2,4,6") from None
    if any(width <= 0 for width in widths):
        raise UserError(f"--bits {bits}: a width must be above 0")
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


def _budget(flops: float | None, gpu_hours: float | None, per_second: float | None) -> float:
    if (flops is None) == (gpu_hours is None):
        raise UserError("give the budget as --flops C, or as --gpu-hours H --flops-per-gpu-second F")
    if gpu_hours is not None:
        if per_second is None:
            raise UserError("--gpu-hours needs --flops-per-gpu-second: peak FLOP/s times the MFU you reach, such as 4e14")
        flops = gpu_hours * 3600.0 * per_second
    if flops is None or not flops > 0:
        raise UserError("the budget must be above 0")
    return flops


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
    bootstrap: Annotated[int, typer.Option(metavar="N", help="draws of each fit", min=10)] = 400,
    seed: _Seed = 0,
    law_file: _LawFile = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="write one simulated study, fit nothing")] = None,
    json: _Json = False,
) -> None:
    """Draw runs from a known law with noise: is it recovered, and how often do intervals cover?"""
    import numpy as np

    from scaling import show
    from scaling.fit_file import to_json
    from scaling.laws import find_law
    from scaling.runs import read_runs, select
    from scaling.simulate import design_from, study
    from scaling.simulate import simulate as simulate_law

    chosen = find_law(law, law_file)
    values = _numbers(truth, "--truth")
    columns = None
    if design:
        frame = read_runs(design, rename or [])
        columns = design_from(frame[select(frame, where, "--where")], chosen)
    if objective not in (None, "huber-log", "least-squares"):
        raise UserError(f"--objective {objective}: there are huber-log and least-squares")
    if out is not None:
        runs = columns or (chosen.design() if chosen.design else {})
        drawn = study(
            chosen, {**chosen.truth, **values}, runs, chosen.noise if noise is None else noise, np.random.default_rng(seed)
        )
        drawn.to_csv(out, index=False)
        print(f"written: {out} ({len(drawn)} runs)", file=sys.stderr)
        return
    with show.progress(sets) as advance:
        found = simulate_law(
            chosen, truth=values, columns=columns, noise=noise, sets=sets, bootstrap=bootstrap, seed=seed,
            objective=objective, progress=advance,  # type: ignore[arg-type]  # checked above
        )  # fmt: skip
    if json:
        print(to_json(show.simulation_plain(found)))
    else:
        show.simulation(found)


def main(arguments: list[str]) -> int:
    """Parse the command line and run. Returns the exit code: 0 done, 1 the work failed, 2 the request is wrong."""
    try:
        app(args=arguments or ["--help"], prog_name="scaling", standalone_mode=False)
    except (UserError, WorkFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        # typer's own complaints about words; its class has another home in every version of typer.
        if not hasattr(error, "format_message"):
            raise
        command = " ".join(["scaling", *arguments[:1]] if arguments and arguments[0] in _COMMANDS else ["scaling"])
        print(f"error: {error.format_message()}\n`{command} --help` says what can be typed", file=sys.stderr)
        return 2
    return 0 if arguments else 2
