"""Runs that wandb recorded offline: the configuration and the last values of a `.wandb` file, by wandb's own reader."""

import json
from pathlib import Path
from typing import Any

from scaling.errors import UserError


def wandb_row(path: Path) -> dict[str, Any]:
    """One run: configuration and summary, nested keys joined by underscores; `status` says whether it ended well.

    Raises:
        UserError: wandb is not installed, or the file is not one of its.
    """
    try:
        from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made at import
        from wandb.sdk.internal.datastore import DataStore
    except ImportError:
        raise UserError(f"{path}: reading wandb's files needs wandb; type: pip install wandb") from None
    store = DataStore()
    values: dict[str, Any] = {"name": path.parent.name, "status": "running"}
    try:
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            record = Record()
            record.ParseFromString(data)
            _take(record, values)
    except Exception as error:  # wandb's reader raises AssertionError, Exception and protobuf's own
        if len(values) == 2:
            raise UserError(f"{path} is not a file of wandb's: {error or type(error).__name__}") from None
    from scaling.runs import SOURCE, flatten

    flat = flatten(values)
    return {key.replace("/", "_"): value for key, value in flat.items() if not key.startswith("_")} | {SOURCE: str(path.parent)}


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
