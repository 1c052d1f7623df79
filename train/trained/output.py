"""The folder that an export writes, completely or not at all."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from common.errors import UserError, WorkFailed
from common.files import sync
from train.trained.weights import Weights


@contextmanager
def output_folder(out: Path) -> Iterator[Path]:
    """A temporary folder to write into. On success it becomes `out`; on an error it is removed.

    Raises:
        UserError: `out` is in use, or its parent cannot be written.
        WorkFailed: the disk failed.
    """
    out = out.expanduser().resolve()
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} exists and is not an empty folder: choose another --out, or delete it")
        if os.path.ismount(out):
            raise UserError(f"{out} is where a disk is mounted and cannot be replaced: choose a folder inside it")
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
    try:
        yield temporary
        os.rename(temporary, out)
    except OSError as error:
        raise WorkFailed(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file and make it durable."""
    with open(path, "wb") as stream:
        for part in parts:
            stream.write(part)
        sync(stream)


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Indented JSON, encoded."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def read_run_tokenizer(run: Path) -> tuple[dict[str, Any], str, int]:
    """The run's tokenizer as JSON, and its end-of-text token, as text and as an id."""
    try:
        path = run / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(path))
        plain = json.loads(path.read_text(encoding="utf-8"))
        end_of_text = int(json.loads((run / "data.json").read_text(encoding="utf-8"))["end_of_text"])
        token = str(tokenizer.id_to_token(end_of_text))
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise UserError(f"the tokenizer of {run} cannot be read: {error!r}") from None
    if tokenizer.num_special_tokens_to_add(False):
        # It adds special tokens to every text, which training does not, so users of the export should not either.
        plain["post_processor"] = None
    return plain, token, end_of_text


def show_written(out: Path, what: str, sizes: Mapping[str, int], weights: Weights) -> None:
    """Print what was written, and what the files lack."""
    print(f"{out}: {what}")
    for name, size in sizes.items():
        print(f"  {name:34} {size:>18,} bytes")
    if weights.quant is not None and weights.quant.activation_bits:
        print(f"  not in these files: the inputs of linears were rounded to {weights.quant.activation_bits} bits per token")
