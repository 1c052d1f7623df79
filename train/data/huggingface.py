"""A data set of Hugging Face's, written once to a file of JSON lines in the cache: from there it is read as any other file."""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError, WorkFailed
from common.files import sync
from train.config.sections.corpus import HuggingFaceCorpusConfig
from train.data.lock import building, exclusive, publish, remove_leftovers

_ROWS = 1000  # in memory at once


def read_data_set(config: HuggingFaceCorpusConfig) -> Path:
    """The file with the texts of a data set, {"text": ...} a line, written if it does not exist yet.

    A data set on the Hub is streamed, and known by its name: to read a newer version of it, delete the folder of the file. Any
    number of processes may call this at once: one reads, the others wait.

    Raises:
        UserError: there is no such data set, configuration, split or column; a text is no string; datasets is not installed.
        WorkFailed: the data set cannot be read to its end; the cache folder cannot be written.
    """
    cache_dir = Path(config.cache_dir).expanduser()
    identity = ["huggingface", config.dataset, config.config, config.split, config.text_column, _saved_state(config)]
    folder = cache_dir / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    path = folder / "text.jsonl"
    if path.is_file():
        return path
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with exclusive(folder.with_name(f"{folder.name}.lock"), announce=True):
            if path.is_file():
                return path
            remove_leftovers(folder)
            rows = _open(config)
            print(f"reading the data set {config.dataset} into {path}", file=sys.stderr, flush=True)
            with building(folder) as temporary:
                _write(temporary / path.name, _texts(rows, config))
                publish(temporary, folder)
    except OSError as error:  # of the network too
        raise WorkFailed(
            f"cannot read the data set {config.dataset} into {cache_dir}: {error}\n"
            "check the network and the room on that disk, or type data.cache_dir=... with a folder that can be written"
        ) from error
    return path


def _saved_state(config: HuggingFaceCorpusConfig) -> str | None:
    """What tells a data set on disk from another that is saved there later; None: it is on the Hub."""
    folder = Path(config.dataset).expanduser()
    if not folder.exists():
        return None
    if config.config is not None:
        raise UserError(f"data.config={config.config}: a saved data set has no configurations; leave data.config out")
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        if config.split not in splits:
            raise UserError(f"{folder} has no split {config.split!r}; type data.split=... with one of: {', '.join(splits)}")
        folder /= config.split
    if not (folder / "state.json").is_file():
        raise UserError(
            f"{folder} is no data set that save_to_disk has written\n"
            f"type data=files data.files=['{folder}/**/*.parquet'] for files of your own"
        )
    return (folder / "state.json").read_text(encoding="utf-8")


def _open(config: HuggingFaceCorpusConfig) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("data=huggingface: the package datasets is not installed; type pip install datasets") from None
    folder = Path(config.dataset).expanduser()
    if folder.exists():
        saved = datasets.load_from_disk(str(folder))
        return saved[config.split] if isinstance(saved, datasets.DatasetDict) else saved
    try:
        return datasets.load_dataset(config.dataset, config.config, split=config.split, streaming=True)
    except (FileNotFoundError, ValueError) as error:  # of the Hub's names: no such data set, configuration or split
        raise UserError(
            f"data.dataset={config.dataset}: {str(error).splitlines()[0]}\n"
            "check data.dataset (a name on the Hub or a folder), data.config and data.split"
        ) from error


def _texts(rows: Any, config: HuggingFaceCorpusConfig) -> Iterator[str]:
    number = 0
    column = config.text_column
    if rows.column_names is not None and column in rows.column_names:
        rows = rows.select_columns([column])
    for batch in rows.iter(batch_size=_ROWS):
        if column not in batch:
            raise UserError(
                f"{config.dataset} has no column {column!r}; it has: {', '.join(batch)}\ntype data.text_column=<one of them>"
            )
        for text in batch[column]:
            if not isinstance(text, str):
                kind = "null" if text is None else type(text).__name__
                raise UserError(
                    f"{config.dataset}: row {number}: {column!r} is {kind}, not a string; type data.text_column=... for the "
                    "text's own name"
                )
            yield text
            number += 1


def _write(path: Path, texts: Iterator[str]) -> None:
    with path.open("wb") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
        sync(file)
