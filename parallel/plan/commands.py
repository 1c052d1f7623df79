"""`foretrain layout`: plan, check, calibrate, simulate. Everything heavy is imported when a command runs."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from common.commands import answer
from common.errors import UserError
from parallel.plan.hardware import hardware_names, load_hardware
from parallel.plan.job import BYTES, Choice, Job
from parallel.plan.recipe import load_recipe, recipe_names
from parallel.plan.search import nearest_that_fits, search
from parallel.plan.words import layout_words, model_shape

_COMMANDS = ("plan", "check", "calibrate", "simulate")
app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Layouts: will it fit, how fast will it be, which is best, before anything runs; with a published error.",
)
_Model = Annotated[
    str,
    typer.Option(
        help="a model of configs/model, or num_layers=..,hidden_size=..,num_heads=..,ffn_size=..,vocab_size=..,ffn=swiglu|gelu"
    ),
]
_Hardware = Annotated[str | None, typer.Option(help=f"{' | '.join(hardware_names())}, or a YAML file of your own")]
_Recipe = Annotated[str | None, typer.Option(help=f"whose framework: {' | '.join(recipe_names())}")]
_Json = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]
_Picture = Annotated[Path | None, typer.Option(metavar="FILE.png", help="draw it")]


def main(arguments: list[str]) -> int:
    """Run a command. Returns the exit code: 0 done, 1 the work failed, 2 the request is wrong."""
    return answer(app, arguments, name="foretrain layout", commands=_COMMANDS)


@app.command()
def plan(
    model: _Model,
    gpus: Annotated[int, typer.Option(min=1, help="devices")],
    hardware: _Hardware = "h100",
    sequence: Annotated[int, typer.Option(min=1, help="tokens of a sequence")] = 4096,
    batch_sequences: Annotated[int, typer.Option(min=1, help="sequences of a step")] = 256,
    layout: Annotated[
        str | None, typer.Option(metavar="KEY=VALUE,...", help="what is decided; what is left open is searched")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="how many layouts to show")] = 5,
    recipe: _Recipe = "native",
    precision: Annotated[str, typer.Option(help=" | ".join(BYTES))] = "bf16",
    tokens: Annotated[float | None, typer.Option(min=1, help="tokens of the whole run: for time, energy and money")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="dollars per device and hour")] = None,
    picture: _Picture = None,
    json: _Json = False,
) -> None:
    """The fastest layouts that fit, and why they are no faster."""
    from parallel.plan.show import plan_json, plan_table

    fixed = layout_words(layout)
    job = job_of(model, hardware or "h100", recipe or "native", sequence, batch_sequences, precision)
    best = search(job, gpus, fixed, top)
    instead = None
    if not best[0].fits:
        instead = nearest_that_fits(best[0].job, gpus)
    if json:
        print(_dump(plan_json(best, instead, tokens, price)))
    else:
        plan_table(best, instead, tokens, price)
    if picture is not None:
        from parallel.plan.pictures import plan_picture

        plan_picture(best, picture)


def job_of(model: str, hardware: str, recipe: str, sequence: int, batch_sequences: int, precision: str) -> Job:
    """The job that the words of a command mean, with an open layout.

    Raises:
        UserError: a word is not known.
    """
    if precision not in BYTES:
        raise UserError(f"--precision {precision}: choose one of {', '.join(BYTES)}")
    machine, framework = load_hardware(hardware), load_recipe(recipe)
    if precision == "fp8" and "fp8" not in machine.peak:
        raise UserError(f"--precision fp8: {machine.name} has no fp8 peak; it has {', '.join(machine.peak)}")
    return Job(
        shape=model_shape(model),
        sequence=sequence,
        batch_sequences=batch_sequences,
        hardware=machine,
        recipe=framework,
        choice=Choice(sequence_parallel=framework.sequence_parallel),
        precision=precision,
        constants=framework.constants_for(machine.kind),
    )


@app.command()
def check(
    measured: Annotated[
        list[Path], typer.Argument(metavar="RUNS|ROWS.csv", help="run directories, or a table of measured runs")
    ],
    hardware: _Hardware = None,
    recipe: _Recipe = None,
    fit_rows: Annotated[
        bool, typer.Option("--fit-rows", help="refine the constants on these rows, and print them as YAML")
    ] = False,
    json: _Json = False,
) -> None:
    """Forecasts against measurements: the error, and fit or no fit for each row."""
    from parallel.plan.check import Checked, check_rows, refined
    from parallel.plan.show import check_table

    checked: Checked = check_rows(measured, recipe=recipe, hardware=hardware)
    if fit_rows:
        checked, yaml = refined(checked)
        print(yaml, file=sys.stderr if json else sys.stdout)
    if json:
        print(_dump(checked.as_json()))
    else:
        check_table(checked)


@app.command()
def calibrate(
    out: Annotated[Path, typer.Option(metavar="FILE.yaml", help="where to write the machine")] = Path("machine.yaml"),
    json: _Json = False,
) -> None:
    """Measure this machine: products, memory, links. Under torchrun the links between its processes too."""
    from parallel.plan.calibrate import measure_machine, write_machine

    machine = measure_machine()
    write_machine(machine, out)
    if json:
        print(_dump(machine))
    else:
        print(f"written to {out}: foretrain layout plan --hardware {out} ...")


@app.command()
def simulate(
    model: _Model = "1t",
    hardware: _Hardware = "h100",
    recipe: _Recipe = "megatron",
    sequence: Annotated[int, typer.Option(min=1, help="tokens of a sequence")] = 4096,
    batch_sequences: Annotated[int, typer.Option(min=1, help="sequences of a step, at any number of devices")] = 8192,
    tokens: Annotated[float, typer.Option(min=1, help="tokens of the run")] = 2e13,
    picture: _Picture = None,
    json: _Json = False,
) -> None:
    """From a node to 100,000 devices: step time, memory, failures, cost, and where it stops paying."""
    from parallel.plan.show import simulate_table
    from parallel.plan.simulate import curve

    job = job_of(model, hardware or "h100", recipe or "megatron", sequence, batch_sequences, "bf16")
    points = curve(job, tokens)
    if json:
        print(_dump({"points": [point.as_json() for point in points]}))
    else:
        simulate_table(points)
    if picture is not None:
        from parallel.plan.pictures import curve_picture

        curve_picture({str(model): points}, picture)


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2)
