"""Small corpora and the folders they are tokenised into."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from train.config.sections.corpus import FilesCorpusConfig
from train.data.shards import Shards, SplitWriter, TokenStream

TEXT = "the cat sat on a mat while seven quick brown foxes jumped over lazy dogs and def return import self"
WORDS = TEXT.split()


def sentence(number: int, words: int = 12) -> str:
    """A text of its own for every number."""
    return " ".join(WORDS[(number * 7 + place * (1 + number % 5)) % len(WORDS)] for place in range(words)) + f" {number}\n"


def write_json_lines(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


def texts_of(shards: Shards) -> dict[str, list[str]]:
    """The documents of both splits, decoded, without their end of text."""
    tokenizer = shards.tokenizer()
    found: dict[str, list[str]] = {}
    for name, stream in (("train", shards.train), ("validation", shards.validation)):
        tokens, ids = stream.read(0, stream.tokens), stream.document_ids(0, stream.tokens)
        documents = [tokens[ids == number].tolist() for number in range(stream.documents)]
        assert all(document[-1] == shards.end_of_text for document in documents)
        assert all(shards.end_of_text not in document[:-1] for document in documents)
        found[name] = [tokenizer.decode(document[:-1], skip_special_tokens=False) for document in documents]
    return found


class Workplace:
    """A folder for text and a folder for the cache, and (tests cannot import this file) the helpers on them."""

    sentence = staticmethod(sentence)
    write_json_lines = staticmethod(write_json_lines)
    texts_of = staticmethod(texts_of)

    def __init__(self, root: Path) -> None:
        self.text = root / "text"
        self.cache = root / "cache"
        self.text.mkdir()

    def corpus(self, *files: str | Path, fraction: float = 0.1, **options: object) -> FilesCorpusConfig:
        values = {"text_column": "text", "document_separator": None, "cache_dir": str(self.cache)} | options
        return FilesCorpusConfig(
            name="files",
            files=[str(file) for file in files] or [str(self.text / "*")],
            validation_fraction=fraction,
            **values,  # type: ignore[arg-type]
        )

    def sentences(self, count: int, name: str = "a.jsonl") -> FilesCorpusConfig:
        return self.corpus(write_json_lines(self.text / name, [sentence(number) for number in range(count)]))

    def assert_nothing_left(self) -> None:
        """Nothing in the cache folder but locks and remembered fingerprints."""
        left = [path.name for path in self.cache.glob("*")] if self.cache.exists() else []
        assert [name for name in left if not name.endswith(".lock") and name != "fingerprints.json"] == []


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


StreamMaker = Callable[..., TokenStream]


@pytest.fixture
def make_stream(tmp_path: Path) -> StreamMaker:
    """Documents (lists of tokens) -> a stream of them, in files of `shard_tokens`."""
    made = 0

    def make(documents: list[list[int]], shard_tokens: int = 1 << 20) -> TokenStream:
        nonlocal made
        made += 1
        folder = tmp_path / f"stream{made}"
        folder.mkdir()
        writer = SplitWriter(folder, "train", "<u4", shard_tokens)
        for document in documents:
            writer.write(np.array(document, dtype=np.int64))
            writer.end_document()
        writer.close()
        return writer.stream(1 << 31)

    return make
