"""Documents together with the records they came in, so that what is kept can be written as it was read."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import UserError
from common.files import sync
from train.data.readers import json_line_bytes, readable

_ROWS = 256


@dataclass(frozen=True)
class Document:
    """One document, or what is wrong with it.

    Attributes:
        place: file and line or row, for people.
        text: None for a bad document.
        fault: why it is bad; "" for a good one.
        record: the record it came in, a JSON object or a row of a table of one row.
    """

    place: str
    text: str | None
    fault: str
    record: Any = None


def read_documents(path: Path, kind: str, column: str) -> Iterator[Document]:
    """Every document of a file in order, good or bad. A .txt file is one document.

    Raises:
        UserError: the file cannot be read, or has no such column.
    """
    if kind == ".parquet":
        yield from _rows(path, column)
    elif kind == ".txt":
        with readable(path):
            content = path.read_bytes()
        yield _json_document(str(path), content, None, column)
    else:
        for number, line in enumerate(json_line_bytes(path, kind), 1):
            if line and not line.isspace():
                yield _json_document(f"{path}:{number}", line, json.loads, column)


def _json_document(place: str, content: bytes, parse: Any, column: str) -> Document:
    try:
        decoded = content.decode()
        record = parse(decoded) if parse else {column: decoded}
    except UnicodeDecodeError as error:
        return Document(place, None, f"not valid UTF-8 at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Document(place, None, f"not a line of JSON ({error})")
    if not isinstance(record, dict):
        return Document(place, None, "not a JSON object")
    if column not in record:
        return Document(place, None, f"no field {column!r}")
    return _checked(place, record[column], record)


def _checked(place: str, text: Any, record: Any) -> Document:
    if not isinstance(text, str):
        return Document(place, None, f"the text is {'null' if text is None else type(text).__name__}, not a string")
    if not text or text.isspace():
        return Document(place, None, "empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return Document(place, None, f"half a surrogate pair at character {error.start}")
    return Document(place, text, "", record)


def _rows(path: Path, column: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        with readable(path), pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise UserError(
                    f"{path}: no column {column!r}; it has: {', '.join(names[:20])}\ntype --text-column ONE_OF_THEM"
                )
            row = 0
            for batch in file.iter_batches(batch_size=_ROWS):
                texts = batch.column(column)
                for index in range(batch.num_rows):
                    place = f"{path}: row {row}"
                    row += 1
                    try:
                        text = texts[index].as_py()
                    except UnicodeDecodeError as error:
                        yield Document(place, None, f"not valid UTF-8 at byte {error.start}")
                        continue
                    yield _checked(place, text, batch.slice(index, 1))
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error


class Writer:
    """Writes documents and their scores in the format they came in; those of a .txt file as JSON lines."""

    def __init__(self, path: Path, kind: str) -> None:
        self._kind, self._stack, self._rows = kind, ExitStack(), list[tuple[Any, float]]()
        self._raw: BinaryIO = self._stack.enter_context(path.open("wb"))
        self._file: Any = self._raw
        self._table: Any = None
        if kind == ".jsonl.zst":
            import zstandard

            self._file = zstandard.ZstdCompressor().stream_writer(self._raw, closefd=False)

    def write(self, record: Any, score: float) -> None:
        """Add one document."""
        if self._kind != ".parquet":
            self._file.write(json.dumps({**record, "score": score}, ensure_ascii=False).encode() + b"\n")
            return
        self._rows.append((record, score))
        if len(self._rows) == _ROWS:
            self._write_rows(self._rows)
            self._rows = []

    def _write_rows(self, rows: Sequence[tuple[Any, float]]) -> None:
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.Table.from_batches([record for record, _ in rows])
        if "score" in table.column_names:
            table = table.drop_columns(["score"])
        table = table.append_column("score", pyarrow.array([score for _, score in rows], pyarrow.float64()))
        if self._table is None:
            self._table = pyarrow.parquet.ParquetWriter(self._raw, table.schema)
        self._table.write_table(table)

    def close(self) -> None:
        """Finish the file and make it durable."""
        if self._rows:
            self._write_rows(self._rows)
        if self._table is not None:
            self._table.close()
        if self._file is not self._raw:
            self._file.close()
        sync(self._raw)
        self._stack.close()
