"""`foretrain preselect train|filter`: choose the documents that are worth training on."""

import sys
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


COMMANDS = {"train": train}


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
