"""`python -m scaling`: the commands. Everything heavy is imported when a command runs, so that `--help` answers at once."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import UserError, WorkFailed
from scaling.cli import fit, options
from scaling.cli.app import Data, Fits, Json, LawFile, LawName, Objective, Rename, Seed, Where, app

if TYPE_CHECKING:
    from scaling.laws import Law
    from scaling.laws.base.columns import Columns

__all__ = ["fit", "main"]  # whose module registers its command when it is imported

_COMMANDS = ("table", "fit", "compare", "predict", "plan", "report", "simulate")


@app.command()
def table(
    runs: Data,
    where: Where = None,
    rename: Rename = None,
    columns: Annotated[str | None, typer.Option(metavar="A,B,...", help="columns to show; the usual ones unless given")] = None,
    sort: Annotated[str, typer.Option(metavar="COLUMN", help="order of the rows")] = "flops",
    format: Annotated[str, typer.Option(help="terminal, csv, markdown or json")] = "terminal",
    out: Annotated[Path | None, typer.Option(help="write to this file instead; .csv, .md or .json says the format")] = None,
    json: Json = False,
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
def predict(
    fits: Fits,
    parameters: Annotated[float | None, typer.Option(help="of the model, counted as in the fitted runs")] = None,
    tokens: Annotated[float | None, typer.Option(help="of training")] = None,
    flops: Annotated[float | None, typer.Option(help="in place of --tokens (6 parameters tokens), or of both")] = None,
    bits: Annotated[float | None, typer.Option(help="width of a weight")] = None,
    activation_bits: Annotated[float | None, typer.Option(help="width of an activation; 16 where it is not quantized")] = None,
    qat_fraction: Annotated[
        float | None, typer.Option(help="share of the tokens that is quantization-aware, above 0 and below 1")
    ] = None,
    batch_tokens: Annotated[float | None, typer.Option(help="tokens of an optimizer step")] = None,
    loss: Annotated[float | None, typer.Option(help="a known loss, for a law that takes one")] = None,
    json: Json = False,
) -> None:
    """Predict a run. A loss fit, given too, says the loss to laws that take one."""
    from scaling.fit.file import read_fit, to_json
    from scaling.fit.predict import predict_run
    from scaling.show import tables

    given = options.numbers({
        "--parameters": parameters, "--tokens": tokens, "--flops": flops, "--bits": bits, "--qat-fraction": qat_fraction,
        "--activation-bits": activation_bits,
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
    fits: Fits,
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
    insist: Annotated[bool, typer.Option("--insist", help="plan even far beyond what the fitted runs can tell")] = False,
    json: Json = False,
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
        insist=insist,
    )
    if json:
        print(to_json(plan_plain(answer)))
    else:
        tables.plan_table(answer)


@app.command()
def report(
    fits: Fits,
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
    law: LawName,
    sets: Annotated[int, typer.Option(help="simulated studies", min=1)] = 100,
    truth: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="a true parameter. May be repeated")] = None,
    noise: Annotated[
        float | None, typer.Option(help="standard deviation (log of the loss, or the target's unit)", min=0.0)
    ] = None,
    noise_kind: Annotated[
        str, typer.Option(help="gaussian, skewed, growing (towards small runs) or shared (by runs of one size, as checkpoints)")
    ] = "gaussian",
    design: Annotated[
        list[Path] | None, typer.Option(metavar="DATA", help="take the runs of a study from a file; the law's own unless given")
    ] = None,
    where: Where = None,
    rename: Rename = None,
    objective: Objective = None,
    bootstrap: Annotated[int, typer.Option(metavar="N", help="draws of each fit")] = 400,
    seed: Seed = 0,
    law_file: LawFile = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="write one simulated study, fit nothing")] = None,
    json: Json = False,
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
    options.noise_kind(noise_kind)
    columns = None
    if design:
        frame = read_runs(design, rename or [])
        columns = design_from(frame[select(frame, where, "--where")], chosen)
    if out is not None:
        _write_study(chosen, values, columns, noise, noise_kind, seed, out)
        return
    with tables.progress(sets) as advance:
        simulated = simulate_law(
            chosen, truth=values, columns=columns, noise=noise, kind=noise_kind, sets=sets, bootstrap=bootstrap, seed=seed,
            objective=options.objective(objective), progress=advance,
        )  # fmt: skip
    if json:
        print(to_json(simulation_plain(simulated)))
    else:
        tables.simulation(simulated)


def _write_study(
    law: "Law", truth: dict[str, float], columns: "Columns | None", noise: float | None, kind: str, seed: int, out: Path
) -> None:
    import numpy as np

    from scaling.fit.simulate import study
    from scaling.show.destination import writing

    law.check_values(truth, "--truth")
    runs = columns or (law.design() if law.design else {})
    drawn = study(law, {**law.truth, **truth}, runs, law.noise if noise is None else noise, np.random.default_rng(seed), kind)
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
