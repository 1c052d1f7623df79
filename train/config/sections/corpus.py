"""Where text comes from."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from train.config.sections.types import FREE, STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CorpusConfig:
    """What every corpus has."""

    cache_dir: Annotated[str, FREE]
    """where tokenised shards are kept, one folder per content hash"""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]
    """share of the documents held out for validation (of each document's tail where there are too few documents)"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StdlibCorpusConfig(CorpusConfig):
    """The Python standard library's own source text, found on this machine: a real corpus that needs no network."""

    name: Literal["stdlib"]
    """which corpus"""
    include_tests: bool
    """also the standard library's test folders (about 2.6 times the text)"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FilesCorpusConfig(CorpusConfig):
    """Text files of your own."""

    name: Literal["files"]
    """which corpus"""
    files: list[str]
    """globs of .txt, .jsonl, .jsonl.zst and .parquet files"""
    text_column: str
    """the field (JSON lines) or column (Parquet) that holds the text"""
    document_separator: str | None
    """splits a .txt into documents; null: one file is one document"""


Corpus = Annotated[StdlibCorpusConfig | FilesCorpusConfig, Field(discriminator="name")]
