"""`foretrain evaluate RUN [--quantize bits=4] [parallel.tensor=2 ...]`: the validation loss of a run, on any layout."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import UserError
from parallel.environment import leave
from train.command.frame import process_of, run_command
from train.config import Config
from train.data.corpus import open_files
from train.trained.layout import evaluation_config
from train.trained.rounding import check_rounding


def evaluate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="a run's folder, such as runs/demo")],
    quantize: Annotated[
        str | None,
        typer.Option(
            help="first round full-precision weights to nearest, bits=4 or bits=4,group=64; or cast any to format=e2m1"
        ),
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option(help="score these texts instead of the validation set: a glob of .txt, .jsonl, ... ; may be repeated"),
    ] = None,
    text_column: Annotated[str, typer.Option(help="the field or column of --files that holds the text")] = "text",
    per_document: Annotated[bool, typer.Option("--per-document", help="with --files: bits of every document")] = False,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="answer the questions of a file of JSON lines, or brackets, indentation, imports, names; may be repeated"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
    layout: Annotated[
        list[str] | None, typer.Argument(help="for a model too large for one process: parallel.tensor=2, ...")
    ] = None,
) -> None:
    """Validation loss of a run's newest weights, over as many tokens as the run itself evaluates on; or scores of
    --files, or errors of --tasks."""
    if per_document and not files:
        raise UserError("--per-document gives the bits of your documents: add --files 'texts/*.jsonl'")
    config = evaluation_config(run, layout or [])
    if quantize is not None:
        check_rounding(config, quantize)
    if files and tasks:
        raise UserError("--files and --tasks are two requests: type them in two commands")
    from train.scoring.built_in import task_files
    from train.scoring.tasks import read_tasks

    read_tasks(task_files(tasks or []))  # a wrong line is said before processes start
    corpus = open_files(files, text_column) if files else None
    environment = process_of(context, config)
    from parallel.mesh import connect
    from train.trained.evaluation import evaluate_run, score_files, score_tasks

    with connect(environment, "cpu" if config.train.device == "cpu" else "auto") as world:
        if tasks:
            result = score_tasks(run, config, world, tasks, quantize=quantize)
        elif corpus is None:
            result = evaluate_run(run, config, world, quantize)
        else:
            texts = corpus.documents()
            result = score_files(run, config, world, texts, quantize=quantize, per_document=per_document)
        if world.rank == 0:
            print(json.dumps(result) if as_json else _words(result))


def _words(result: dict[str, Any]) -> str:
    if "tasks" in result:
        return "\n".join(
            f"{name}: accuracy {score['accuracy']:.4f} +- {score['standard_error']:.4f}, normalised by length "
            f"{score['accuracy_normalised']:.4f}, chance {score['chance']:.4f}, {score['questions']:,} questions"
            for name, score in result["tasks"].items()
        )
    per_byte = f"{result['bits_per_byte']:.4f} bits per byte"
    what = "validation loss" if "validation" in result["losses"] else "loss"
    lines = [f"{what} {result['loss']:.4f} nats per token, {per_byte} ({result['weights']})"]
    for name, loss in result["losses"].items():
        if name in result.get("set_bits_per_byte", ()) and name != "validation":
            lines.append(f"{name} {loss:.4f} nats per token, {result['set_bits_per_byte'][name]:.4f} bits per byte")
    for number, score in enumerate(result.get("documents", ())):
        lines.append(
            f"document {number}: {score['bits_per_character']:.4f} bits per character, {score['bits_per_byte']:.4f} bits per "
            f"byte, {score['tokens']:,} tokens"
        )
    return "\n".join(lines)


def main(arguments: list[str], start: Callable[[Config], int] | None = None) -> int:
    """Parse the command line and run. Returns the exit code.

    `start` runs this command in the processes of a layout that needs several, and returns the exit code.
    """
    return run_command(evaluate, arguments, start=start)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
