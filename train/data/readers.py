"""One reader per kind of file. It yields the file's texts in order, accepts only valid UTF-8, and locates every error."""

import codecs
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError

CHUNK_BYTES = 1 << 20
# A little compressed data can be a lot of text, so compressed files are read in smaller chunks.
_COMPRESSED_CHUNK_BYTES = 1 << 16
# Rows of a Parquet file in memory at once.
_PARQUET_ROWS = 256

Advance = Callable[[int], None]
"""Called with the number of bytes read since the last call."""


@dataclass(frozen=True)
class ReadOptions:
    """The options of a corpus that change its documents."""

    text_column: str = "text"
    document_separator: str | None = None


Reader = Callable[[Path, ReadOptions, Advance], Iterator[str]]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an `OSError` about `path` into a `UserError`."""
    try:
        yield
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a file; to take what is in it, type {path}/**/*.jsonl") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def read_python(path: Path, options: ReadOptions, advance: Advance) -> Iterator[str]:
    """The module as one document. A few test files are not UTF-8: they are skipped."""
    with readable(path):
        content = path.read_bytes()
    advance(len(content))
    try:
        yield content.decode()
    except UnicodeDecodeError:
        return


def read_text(path: Path, options: ReadOptions, advance: Advance) -> Iterator[str]:
    """The whole file, or the parts between separators. One document is in memory at a time."""
    separator = options.document_separator
    if separator is None:
        yield "".join(_decoded(path, _chunks(path, advance)))
        return
    if not separator:
        raise UserError("data.document_separator is empty; type data.document_separator=null for one document per file")
    yield from _split(_decoded(path, _chunks(path, advance)), separator)


def read_json_lines(path: Path, options: ReadOptions, advance: Advance) -> Iterator[str]:
    """The text field of every line."""
    return _json_texts(path, _chunks(path, advance), options)


def read_json_lines_zst(path: Path, options: ReadOptions, advance: Advance) -> Iterator[str]:
    """The text field of every line of a zstandard file, of any number of frames."""
    return _json_texts(path, _zst_chunks(path, advance), options)


def read_parquet(path: Path, options: ReadOptions, advance: Advance) -> Iterator[str]:
    """The text column, a few rows at a time. Other columns are not read."""
    import pyarrow
    import pyarrow.parquet

    column = options.text_column
    try:
        with readable(path), pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise UserError(_no_such_text(str(path), "column", column, names))
            row = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[column]):
                for value in batch.column(0):
                    yield _checked(_python_value(value, path, row), f"{path}: row {row}", column)
                    row += 1
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
    with readable(path):
        advance(path.stat().st_size)


def json_line_bytes(path: Path, kind: str) -> Iterator[bytes]:
    """Every line of a `.jsonl` or `.jsonl.zst` file, as it stands in the file."""
    return _lines((_zst_chunks if kind == ".jsonl.zst" else _chunks)(path, lambda count: None))


READERS: dict[str, Reader] = {
    ".txt": read_text,
    ".jsonl": read_json_lines,
    ".jsonl.zst": read_json_lines_zst,
    ".parquet": read_parquet,
    ".py": read_python,
}


def _chunks(path: Path, advance: Advance) -> Iterator[bytes]:
    with readable(path), path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            advance(len(chunk))
            yield chunk


def _zst_chunks(path: Path, advance: Advance) -> Iterator[bytes]:
    import zstandard

    # Files written by `zstd --long=31` need a window of 2 GiB; the memory is allocated only for files that do.
    context = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = None
    try:
        with readable(path), path.open("rb") as file:
            while chunk := file.read(_COMPRESSED_CHUNK_BYTES):
                advance(len(chunk))
                while chunk:
                    frame = frame or context.decompressobj()
                    yield frame.decompress(chunk)
                    if not frame.eof:
                        break
                    chunk, frame = frame.unused_data, None
    except zstandard.ZstdError as error:
        raise UserError(f"{path} is not a readable zstandard file: {error}") from error
    # The decompressor does not report a file that ends inside a frame.
    if frame is not None:
        raise UserError(f"{path} is cut short: its last zstandard frame is not complete. Copy or download it again")


def _decoded(path: Path, chunks: Iterator[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    for chunk in chunks:
        pending = len(decoder.getstate()[0])
        try:
            yield decoder.decode(chunk)
        except UnicodeDecodeError as error:
            raise UserError(_not_utf8(str(path), offset - pending + error.start)) from None
        offset += len(chunk)
    pending = len(decoder.getstate()[0])
    if pending:
        raise UserError(_not_utf8(str(path), offset - pending))


def _split(texts: Iterator[str], separator: str) -> Iterator[str]:
    """`str.split` of the joined texts, in linear time, without joining them."""
    document: list[str] = []
    tail = ""  # may be the start of a separator that the next text completes
    for text in texts:
        first, *others = (tail + text).split(separator)
        for other in others:
            yield "".join([*document, first])
            document, first = [], other
        tail_start = max(0, len(first) - len(separator) + 1)
        document.append(first[:tail_start])
        tail = first[tail_start:]
    yield "".join([*document, tail])


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        parts.append(first)
        for other in others:
            yield b"".join(parts)
            parts = [other]
    yield b"".join(parts)


def _json_texts(path: Path, chunks: Iterator[bytes], options: ReadOptions) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(_lines(chunks), 1):
        place = f"{path}:{number}"
        if line and not line.isspace():
            try:
                record = json.loads(line.decode())
            except UnicodeDecodeError as error:
                raise UserError(_not_utf8(place, offset + error.start)) from None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place}: not a line of JSON ({error})") from None
            if not isinstance(record, dict):
                raise UserError(f'{place}: a line must be a JSON object like {{"{options.text_column}": "..."}}')
            if options.text_column not in record:
                raise UserError(_no_such_text(place, "field", options.text_column, list(record)))
            yield _checked(record[options.text_column], place, options.text_column)
        offset += len(line) + 1


def _checked(value: Any, place: str, column: str) -> str:
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise UserError(f"{place}: {column!r} is {kind}, not a string; type data.text_column=... for the text's own name")
    # JSON can encode half of a surrogate pair, which is no character and has no UTF-8 encoding.
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{place}: {column!r} holds half a surrogate pair at character {error.start}") from None
    return value


def _python_value(value: Any, path: Path, row: int) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        raise UserError(_not_utf8(f"{path}: row {row}", error.start)) from None


def _not_utf8(place: str, offset: int) -> str:
    return f"{place}: not valid UTF-8 at byte offset {offset}; convert it, as by: iconv -f latin1 -t utf-8"


def _no_such_text(place: str, noun: str, column: str, names: list[str]) -> str:
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    suggestion = names[0] if len(names) == 1 else "<one of them>"
    return f"{place}: no {noun} {column!r}; it has: {shown or 'none'}\ntype data.text_column={suggestion}"
