"""`python -m train.data prepare|inspect|verify [overrides]`: tokenise a corpus, show and check its tokens."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError, WorkFailed

if TYPE_CHECKING:
    from rich.console import Console

    from train.data.shards import Shards

_USAGE = """usage: foretrain data prepare|inspect|verify [overrides]

prepare   tokenise the corpus into data.cache_dir, once
inspect   do the same, and show three training sequences with their document borders
verify    compare every byte of the tokens with the hashes taken when they were written

for example: foretrain data prepare data=files data.files=['text/*.jsonl'] tokenizer=bytes"""

_SEQUENCES_SHOWN = 3


def main(argv: list[str]) -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 invalid request."""
    if not argv or {"-h", "--help"} & set(argv):
        print(_USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    command, *overrides = argv
    try:
        if command not in {"prepare", "inspect", "verify"}:
            raise UserError(f"no command {command!r}; type foretrain data prepare, inspect or verify")
        _run(command, overrides)
    except (UserError, WorkFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _run(command: str, overrides: list[str]) -> None:
    from train.config import load_config

    config = load_config(overrides)

    from rich.console import Console

    from train.data.prepare import build_or_reuse
    from train.data.shards import open_shards
    from train.data.verify import verify_tokens

    started = time.monotonic()
    folder, built = build_or_reuse(config.data, config.tokenizer, progress=True)
    seconds = time.monotonic() - started
    shards = open_shards(folder)
    console = Console(highlight=False)
    _print_table(console, shards, folder, f"{'built' if built else 'reused'} in {seconds:.1f} s")
    if command == "verify":
        console.print(f"{verify_tokens(folder)}")
    if command == "inspect":
        _print_sequences(console, shards, config.train.sequence, config.run.seed)


def _print_table(console: "Console", shards: "Shards", folder: Path, how: str) -> None:
    from rich.table import Table

    train, validation = shards.train, shards.validation
    table = Table("", "train", "validation", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("documents", f"{train.documents:,}", f"{validation.documents:,}")
    table.add_row("tokens", f"{train.tokens:,}", f"{validation.tokens:,}")
    table.add_row("bytes", f"{train.bytes:,}", f"{validation.bytes:,}")
    table.add_row("bytes per token", f"{train.bytes / train.tokens:.3f}", f"{validation.bytes / validation.tokens:.3f}")
    console.print(table)
    held_out = "whole documents" if shards.split == "document" else "the tail of each document"
    console.print(f"validation is {held_out}; vocabulary {shards.vocab_size:,}; bigram loss {shards.bigram_loss:.4f}")
    console.print(f"{folder} ({how})", markup=False, soft_wrap=True)


def _print_sequences(console: "Console", shards: "Shards", sequence: int, seed: int) -> None:
    from rich.rule import Rule

    from train.data.loader import TrainLoader

    loader = TrainLoader(shards.train, sequence, seed)
    tokenizer = shards.tokenizer()
    for sample, window in enumerate(loader.windows(range(_SEQUENCES_SHOWN)).tolist()):
        start, stop = window * sequence, (window + 1) * sequence
        tokens, documents = shards.train.read(start, stop), shards.train.document_ids(start, stop)
        console.print(Rule(f"sample {sample}: tokens {start:,} to {stop:,}", characters="="))
        for document in range(int(documents[0]), int(documents[-1]) + 1):
            part = tokens[documents == document]
            console.print(Rule(f"document {document:,}, {len(part):,} tokens", align="left"))
            text = tokenizer.decode(part.tolist(), skip_special_tokens=False)
            console.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
