"""Runs that wandb recorded offline: the configuration and the last values of a `.wandb` file.

Such a file is a header of seven bytes and a log of LevelDB's format: blocks of 32 KiB that hold pieces of records, each with a
header of seven bytes (checksum, length, first, middle, last or whole piece); a record is one of wandb's protocol buffers. wandb
0.31 offers no reader in Python, only the buffers' classes.
"""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaling.errors import UserError

_IDENT = b":W&B"
_BLOCK, _HEADER = 32_768, 7
_WHOLE, _FIRST, _LAST = 1, 2, 4


def wandb_row(path: Path) -> dict[str, Any]:
    """One run: configuration and summary, nested keys joined by underscores; `status` says whether it ended well.

    Raises:
        UserError: wandb is not installed, or the file is not one of its.
    """
    try:
        buffers = importlib.import_module("wandb.proto.wandb_internal_pb2")
    except ImportError:
        raise UserError(f"{path}: reading wandb's files needs wandb; type: pip install wandb") from None
    from google.protobuf.message import DecodeError

    from scaling.runs import SOURCE, flatten

    content = path.read_bytes()
    if not content.startswith(_IDENT):
        raise UserError(f"{path} is not a file of wandb's")
    values: dict[str, Any] = {"name": path.parent.name, "status": "running"}
    try:
        for data in _records(content):
            record = buffers.Record()
            record.ParseFromString(data)
            _take(record, values)
    except (DecodeError, ValueError) as error:
        raise UserError(f"{path} is damaged, or of a version of wandb's that is not known here: {error}") from None

    flat = flatten(values)
    return {key.replace("/", "_"): value for key, value in flat.items() if not key.startswith("_")} | {SOURCE: str(path.parent)}


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


def _take(record: Any, values: dict[str, Any]) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        values["name"] = record.run.display_name or record.run.run_id or values["name"]
        _update(values, record.run.config.update)
    elif kind == "config":
        _update(values, record.config.update)
    elif kind == "history":
        _update(values, record.history.item)
    elif kind == "summary":
        _update(values, record.summary.update)
    elif kind == "exit":
        values["status"] = "failed" if record.exit.exit_code else "finished"


def _update(values: dict[str, Any], items: Any) -> None:
    for item in items:
        keys = list(item.nested_key) or [item.key]
        value = json.loads(item.value_json)
        if isinstance(value, dict) and set(value) == {"value", "desc"}:
            value = value["value"]
        inner = values
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = value
