"""`foretrain preselect train|filter`: choose the documents that are worth training on."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from common.errors import UserError
from parallel.environment import leave
from train.command.frame import run_command

_USAGE = """usage: foretrain preselect train|filter ... (--help after each says more)

train    a fastText classifier of good documents, from examples of good and bad ones
filter   keep the best fraction of a corpus by characters, or what scores above a threshold"""

Column = Annotated[str, typer.Option(help="the field or column that holds the text")]


def train(
    positives: Annotated[list[str], typer.Option(help="documents to keep: a glob of .jsonl, ...; may be repeated")],
    negatives: Annotated[list[str], typer.Option(help="documents to drop, likewise")],
    out: Annotated[Path, typer.Option(help="the folder to write")] = Path("classifier"),
    text_column: Column = "text",
    epoch: Annotated[int, typer.Option(min=1)] = 5,
    bucket: Annotated[int, typer.Option(min=100_000, help="rows of the table of word pairs, 400 bytes each")] = 2_000_000,
    threads: Annotated[int, typer.Option(min=1, help="with more than one, two trainings differ")] = 1,
    seed: int = 0,
) -> None:
    """Train a classifier and show what it looks at."""
    from train.data.corpus import open_files
    from train.preselect.classifier import Hyperparameters, train_classifier

    good, bad = (list(open_files(patterns, text_column).documents()) for patterns in (positives, negatives))
    result = train_classifier(good, bad, out, Hyperparameters(epoch=epoch, bucket=bucket, thread=threads), seed)
    print(f"{out}: {result['positives']:,} documents for, {result['negatives']:,} against")
    print(f"accuracy on {result['held_out']:,} held-out documents: {result['held_out_accuracy']:.3f}")
    for side in ("for", "against"):
        print(f"words {side}: {' '.join(word for word, _ in result[f'words_{side}'])}")


def filter_command(
    files: Annotated[list[str], typer.Argument(help="globs of .jsonl, .jsonl.zst, .parquet or .txt files")],
    classifier: Annotated[str, typer.Option(help="a folder of preselect train, any fastText .bin, or random")],
    keep: Annotated[float | None, typer.Option(help="the share of all characters to keep, such as 0.1")] = None,
    threshold: Annotated[float | None, typer.Option(help="instead: keep documents that score at least this")] = None,
    out: Annotated[Path, typer.Option(help="the folder to write; the same command again goes on where it was")] = Path("kept"),
    workers: Annotated[int, typer.Option(min=1, help="processes, each for whole files")] = 1,
    text_column: Column = "text",
    label: Annotated[str, typer.Option(help="the label whose probability is the score")] = "__label__1",
) -> None:
    """Keep the best documents, in the format they came in, with their score in a column `score`."""
    if (keep is None) == (threshold is None):
        raise UserError("give one of --keep 0.1 (a share of all characters) and --threshold 0.5 (a score)")
    if keep is not None and not 0 < keep <= 1:
        raise UserError(f"--keep {keep:g} is not a share of the characters: choose one above 0 and up to 1")
    from train.data.corpus import open_files
    from train.preselect.filter import Request, filter_files

    sources = tuple((str(path), kind) for path, kind in open_files(files, text_column).sources)
    name = classifier if classifier == "random" else str(Path(classifier).expanduser().resolve())
    result = filter_files(Request(sources, name, label, text_column, keep, threshold), out, workers)
    print(
        f"{out}: kept {result['kept_documents']:,} of {result['documents']:,} documents, {result['kept_characters']:,} of "
        f"{result['characters']:,} characters, which score {result['threshold']:.6g} or more"
    )
    if result["bad_documents"]:
        print(f"{result['bad_documents']:,} bad documents are left out and listed in {out / 'bad.txt'}")


COMMANDS: dict[str, Callable[..., None]] = {"train": train, "filter": filter_command}


def main(arguments: list[str]) -> int:
    """Parse the command line and run. Returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        print(f"error: {UserError(f'no command {arguments[0]!r}; type foretrain preselect train or filter')}", file=sys.stderr)
        return 2
    return run_command(COMMANDS[arguments[0]], arguments[1:], name=f"preselect {arguments[0]}")


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
