"""Runs that wandb recorded offline: the configuration and the last values of a `.wandb` file. wandb itself is not needed.

Such a file is a header of seven bytes and a log of LevelDB's format: blocks of 32 KiB that hold pieces of records, each with a
header of seven bytes (checksum, length, first, middle, last or whole piece). A record is a protocol buffer, `Record` of wandb's
`wandb_internal.proto`, whose field numbers stand below (they never change: that is how protocol buffers stay readable).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.plain import flatten
from scaling.runs.columns import SOURCE

_IDENT = b":W&B"
_BLOCK, _HEADER = 32_768, 7
_WHOLE, _FIRST, _LAST = 1, 2, 4

# Record: what it is, by its field's number.
_HISTORY, _SUMMARY, _CONFIG, _RUN, _EXIT = 2, 3, 5, 17, 18
_RUN_ID, _RUN_CONFIG, _RUN_NAME = 1, 4, 8
_UPDATE = 1  # of a configuration and a summary, and the items of a history: what was set
_KEY, _NESTED_KEY, _VALUE = 1, 2, 16  # of an item
_EXIT_CODE = 1


def wandb_row(path: Path) -> dict[str, Any]:
    """One run: configuration and summary, nested keys joined by underscores; `status` says whether it ended well.

    Raises:
        UserError: the file is not one of wandb's, or damaged.
    """
    content = path.read_bytes()
    if not content.startswith(_IDENT):
        raise UserError(f"{path} is not a file of wandb's")
    values: dict[str, Any] = {"name": path.parent.name, "status": "running"}
    try:
        for record in _records(content):
            for number, part in _fields(record):
                _take(number, part, values)
    except (ValueError, TypeError, IndexError) as error:
        raise UserError(f"{path} is damaged, or of a version of wandb's that is not known here: {error}") from None

    flat = flatten(values, "_")
    return {key.replace("/", "_"): value for key, value in flat.items() if not key.startswith("_")} | {SOURCE: str(path.parent)}


def history(path: Path) -> Iterator[dict[str, Any]]:
    """The rows that a run logged, in order, with wandb's own `_step`; one cut off by a crash is left out.

    Raises:
        ValueError: the file is not one of wandb's, or damaged.
    """
    content = path.read_bytes()
    if not content.startswith(_IDENT):
        raise ValueError(f"{path} is not a file of wandb's")
    for record in _records(content):
        for number, part in _fields(record):
            if number == _HISTORY:
                row: dict[str, Any] = {}
                _update(row, part)
                yield row


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a log; one cut off by a crash is left out."""
    place, record = _HEADER, b""
    while place + _HEADER <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:  # the rest of a block is padding
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        piece = content[place + _HEADER : place + _HEADER + length]
        if len(piece) < length or kind == 0:
            return
        record = piece if kind in (_WHOLE, _FIRST) else record + piece
        if kind in (_WHOLE, _LAST):
            yield record
        place += _HEADER + length


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer: number, and bytes or a whole number (protobuf.dev, "Encoding")."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"a field of kind {kind}")
        length = varint() if kind == 2 else 8 if kind == 1 else 4
        if place + length > len(message):
            raise ValueError("a field is longer than its record")
        yield number, message[place : place + length]
        place += length


def _take(number: int, part: Any, values: dict[str, Any]) -> None:
    if number == _RUN:
        run = dict(_fields(part))  # of repeated fields the last, which none of these is
        values["name"] = (run.get(_RUN_NAME) or run.get(_RUN_ID) or values["name"].encode()).decode()
        _update(values, run.get(_RUN_CONFIG, b""))
    elif number in (_CONFIG, _HISTORY, _SUMMARY):
        _update(values, part)
    elif number == _EXIT:
        values["status"] = "failed" if dict(_fields(part)).get(_EXIT_CODE) else "finished"


def _update(values: dict[str, Any], message: bytes) -> None:
    for number, item in _fields(message):
        if number != _UPDATE:
            continue
        parts = list(_fields(item))
        keys = [text.decode() for part, text in parts if part == _NESTED_KEY] or [
            text.decode() for part, text in parts if part == _KEY
        ]
        value = json.loads(dict(parts)[_VALUE])
        if isinstance(value, dict) and set(value) == {"value", "desc"}:
            value = value["value"]
        inner = values
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = value
