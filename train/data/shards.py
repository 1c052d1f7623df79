"""Tokenised text on disk: memory-mapped token files, document ends, and an index that is written last.

<cache_dir>/<content hash>/
    tokenizer.json
    train_00000.bin ...  validation_00000.bin ...     little-endian uint16 or uint32 tokens without gaps
    train_ends.npy       validation_ends.npy          int64 token offset of the end of each document
    verified_<host>.json                              which files this machine has compared with their hashes
    index.json                                        sizes, hashes, totals; a folder without it is ignored
"""

import array
import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from common.errors import UserError
from common.files import sync
from train.data.tokenizers.base import Encoder, read_tokenizer
from train.data.verify import damaged

SCHEMA = 1
SHARD_TOKENS = 1 << 28
SPLITS: tuple[Literal["train", "validation"], ...] = ("train", "validation")

Opened = TypeVar("Opened")


class TokenStream:
    """All tokens of one split as one sequence, read from its files.

    Attributes:
        tokens: number of tokens, including end-of-text tokens.
        documents: number of documents.
        bytes: UTF-8 bytes of the documents' text.
    """

    def __init__(self, files: Sequence[Path], dtype: str, ends: Path, text_bytes: int, vocab_size: int) -> None:
        self._files, self._vocab_size = files, vocab_size
        self._parts = [np.memmap(path, dtype=np.dtype(dtype), mode="r") for path in files]
        self._starts = np.cumsum([0] + [len(part) for part in self._parts])
        try:
            self._ends: npt.NDArray[np.int64] = np.load(ends, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise damaged(ends, f"cannot be read: {str(error).splitlines()[0]}") from None
        self.tokens = int(self._starts[-1])
        self.documents = len(self._ends)
        self.bytes = text_bytes

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Tokens start to stop (int64), across files.

        Raises:
            DamagedTokens: one is outside the vocabulary. It never reaches an embedding, where it would be another row's memory.
        """
        assert 0 <= start <= stop <= self.tokens
        tokens = np.empty(stop - start, dtype=np.int64)
        position = start
        while position < stop:
            part = int(np.searchsorted(self._starts, position, side="right")) - 1
            end = min(stop, int(self._starts[part + 1]))
            offset = int(self._starts[part])
            tokens[position - start : end - start] = self._parts[part][position - offset : end - offset]
            position = end
        if len(tokens) and (tokens.max() >= self._vocab_size or tokens.min() < 0):
            self._report(start, tokens)
        return tokens

    def _report(self, start: int, tokens: npt.NDArray[np.int64]) -> NoReturn:
        where = start + int(np.argmax((tokens >= self._vocab_size) | (tokens < 0)))
        file = self._files[int(np.searchsorted(self._starts, where, side="right")) - 1]
        raise damaged(
            file, f"has the token {int(tokens[where - start])} at {where:,}, outside the vocabulary of {self._vocab_size:,}"
        )

    def bits_per_byte(self, loss: float) -> float:
        """A loss in nats per token of this text in bits per byte of it."""
        return loss / math.log(2) * self.tokens / self.bytes

    def take(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The tokens at `positions`, in any order (int64, not compared with the vocabulary)."""
        tokens = np.empty(len(positions), dtype=np.int64)
        parts = np.searchsorted(self._starts, positions, side="right") - 1
        for part in np.unique(parts):
            chosen = parts == part
            tokens[chosen] = self._parts[part][positions[chosen] - self._starts[part]]
        return tokens

    def documents_between(self, first: int, last: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Starts and ends of the documents first to last, in tokens (int64 each)."""
        ends = np.asarray(self._ends[first:last])
        return np.concatenate(([self._ends[first - 1] if first else 0], ends[:-1])).astype(np.int64), ends

    def document_ids(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """For each of the tokens start to stop, its document's number in this split, from 0 (int64)."""
        assert 0 <= start <= stop <= self.tokens
        if start == stop:
            return np.empty(0, dtype=np.int64)
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right")
        ids = np.searchsorted(self._ends[first:last], np.arange(start, stop), side="right")
        return np.asarray(ids + first, dtype=np.int64)


@dataclass(frozen=True)
class Shards:
    """One tokenised corpus.

    Attributes:
        folder: the folder of its files.
        vocab_size: one more than the largest id of the tokenizer.
        end_of_text: id of the token that ends every document.
        tokenizer_sha256: SHA-256 of tokenizer.json.
        split: what was held out for validation: whole documents ("document"), or the tail of each ("position").
        bigram_loss: nats per validation token of a counted bigram.
        train, validation: the tokens.
        sets: the validation sets of `eval.sets`, in the order of their names.
    """

    folder: Path
    vocab_size: int
    end_of_text: int
    tokenizer_sha256: str
    split: Literal["document", "position"]
    bigram_loss: float
    train: TokenStream
    validation: TokenStream
    sets: Mapping[str, TokenStream] = field(default_factory=dict)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the tokens; it does not parse text as special tokens."""
        tokenizer = read_tokenizer(self.folder / "tokenizer.json")
        tokenizer.encode_special_tokens = True
        return tokenizer

    def encoder(self) -> Encoder:
        """What made the tokens from text."""
        name = self.tokenizer().id_to_token(self.end_of_text)
        assert name is not None
        return Encoder(self.tokenizer(), name)


class SplitWriter:
    """Writes one split. Every method raises `OSError` if the disk fails."""

    def __init__(self, folder: Path, name: str, dtype: str, shard_tokens: int) -> None:
        self._folder = folder
        self._name = name
        self._dtype = np.dtype(dtype)
        self._shard_tokens = shard_tokens
        self._ends = array.array("q")
        self._file: BufferedWriter | None = None
        self._open = ExitStack()
        self._hash = hashlib.sha256()
        self._hashes: dict[str, str] = {}
        self.files: list[str] = []
        self.tokens = 0
        self.bytes = 0

    def write(self, tokens: npt.NDArray[np.int64]) -> None:
        """Append tokens."""
        while len(tokens):
            room = -self.tokens % self._shard_tokens
            if room == 0:
                self._next_file()
                room = self._shard_tokens
            assert self._file is not None
            part, tokens = tokens[:room], tokens[room:]
            content = part.astype(self._dtype).tobytes()
            self._file.write(content)
            self._hash.update(content)
            self.tokens += len(part)

    def end_document(self) -> None:
        """Mark the end of a document: all tokens written since the last call."""
        self._ends.append(self.tokens)

    def close(self) -> dict[str, Any]:
        """Write the document ends, make everything durable, and return this split's part of the index."""
        self._finish_file()
        ends = f"{self._name}_ends.npy"
        if sys.byteorder == "big":
            self._ends.byteswap()
        header = {"descr": "<i8", "fortran_order": False, "shape": (len(self._ends),)}
        with (self._folder / ends).open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.write(self._ends.tobytes())
            sync(file)
        self._hashes[ends] = hashlib.sha256((self._folder / ends).read_bytes()).hexdigest()
        sizes = {name: (self._folder / name).stat().st_size for name in [*self.files, ends]}
        totals = {"tokens": self.tokens, "documents": len(self._ends), "bytes": self.bytes}
        return {**totals, "files": sizes, "sha256": self._hashes}

    def abandon(self) -> None:
        """Close the open file after an error; does nothing after `close`."""
        with suppress(OSError):  # closing flushes, and fails again on a full disk
            self._open.close()

    def stream(self, vocab_size: int) -> TokenStream:
        """The tokens written. Call it after `close`."""
        paths = [self._folder / name for name in self.files]
        return TokenStream(paths, self._dtype.str, self._folder / f"{self._name}_ends.npy", self.bytes, vocab_size)

    def _next_file(self) -> None:
        self._finish_file()
        name = f"{self._name}_{len(self.files):05d}.bin"
        self._file = self._open.enter_context((self._folder / name).open("wb"))
        self.files.append(name)

    def _finish_file(self) -> None:
        if self._file is not None:
            sync(self._file)
            self._file = None
            self._hashes[self.files[-1]] = self._hash.hexdigest()
            self._hash = hashlib.sha256()
        self._open.close()


def token_dtype(vocab_size: int) -> str:
    """The smallest integer type for every token id."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def write_file(path: Path, content: bytes) -> None:
    """Write a file and make it durable."""
    with path.open("wb") as file:
        file.write(content)
        sync(file)


def open_shards(folder: Path, sets: Mapping[str, Path] | None = None) -> Shards:
    """Open a tokenised corpus that `prepare` has built, with the `sets` that `prepare_sets` has.

    Raises:
        UserError: the index is missing or of another version, a file's size differs from the index, or the tokenizer is not
            the one that made the tokens. The message says which folder to delete.
    """
    opened = {name: open_set((sets or {})[name]) for name in sorted(sets or {})}

    def shards(index: dict[str, Any]) -> Shards:
        train, validation = (_open_stream(folder, name, index) for name in SPLITS)
        return Shards(
            folder=folder,
            vocab_size=index["vocab_size"],
            end_of_text=index["end_of_text"],
            tokenizer_sha256=index["tokenizer_sha256"],
            split=index["split"],
            bigram_loss=index["bigram_loss"],
            train=train,
            validation=validation,
            sets=opened,
        )

    return _open(folder, shards)


def open_set(folder: Path) -> TokenStream:
    """Open a tokenised validation set. Raises as `open_shards` does."""
    return _open(folder, lambda index: _open_stream(folder, "validation", index))


def _open(folder: Path, make: Callable[[dict[str, Any]], Opened]) -> Opened:
    """What `make` makes of a folder's index, whose files are there."""
    remedy = f"delete {folder} and run again; it will be built anew"
    try:
        index = json.loads((folder / "index.json").read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"no readable index.json in {folder}: {error}\n{remedy}") from error
    try:
        if index["schema"] != SCHEMA:
            raise UserError(f"{folder} has schema {index['schema']}, this version reads {SCHEMA}\n{remedy}")
        problem = _problem(folder, index)
        if problem:
            raise UserError(f"{problem}\n{remedy}")
        return make(index)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'index.json'} is not an index of tokens ({error!r})\n{remedy}") from error
    except OSError as error:
        raise UserError(f"cannot read the tokens in {folder}: {error.strerror or error}\n{remedy}") from error


def _problem(folder: Path, index: dict[str, Any]) -> str | None:
    for name, split in index["splits"].items():
        for file, size in split["files"].items():
            path = folder / file
            actual = path.stat().st_size if path.is_file() else None
            if actual is None:
                return f"{path} is missing"
            if actual != size:
                return f"{path} has {actual} bytes, the index says {size}"
        tokens = sum(size for file, size in split["files"].items() if file.endswith(".bin"))
        if tokens != split["tokens"] * np.dtype(index["dtype"]).itemsize:
            return f"{folder / 'index.json'}: the files of {name} do not hold {split['tokens']} tokens"
    actual_sha256 = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    if actual_sha256 != index["tokenizer_sha256"]:
        return (
            f"{folder / 'tokenizer.json'} is not the tokenizer that made these tokens:\n"
            f"its SHA-256 is {actual_sha256}, the tokens' is {index['tokenizer_sha256']}"
        )
    return None


def _open_stream(folder: Path, name: str, index: dict[str, Any]) -> TokenStream:
    split = index["splits"][name]
    files = sorted(folder / file for file in split["files"] if file.endswith(".bin"))
    return TokenStream(files, index["dtype"], folder / f"{name}_ends.npy", split["bytes"], index["vocab_size"])
