"""The corpus: where text comes from."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from train.config.sections.types import FREE, STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CorpusConfig:
    """The keys of every corpus."""

    cache_dir: Annotated[str, FREE]
    """folder of the tokenised shards, one subfolder per content hash"""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]
    """share of the documents held out for validation (with too few documents: share of each document, its tail)"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StdlibCorpusConfig(CorpusConfig):
    """The source code of this machine's Python standard library: a real corpus that needs no network."""

    name: Literal["stdlib"]
    """which corpus"""
    include_tests: bool
    """include the standard library's test folders (2.6 times the text)"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PythonSourcesCorpusConfig(CorpusConfig):
    """All Python sources of this machine: the standard library with its tests, and the installed packages."""

    name: Literal["python_sources"]
    """which corpus"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FilesCorpusConfig(CorpusConfig):
    """Text files of your own."""

    name: Literal["files"]
    """which corpus"""
    files: list[str]
    """globs of .txt, .jsonl, .jsonl.zst, .parquet and .py files"""
    text_column: str
    """the field (JSON lines) or column (Parquet) that holds the text"""
    document_separator: str | None
    """text that separates the documents of a .txt file; null: one file is one document"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HuggingFaceCorpusConfig(CorpusConfig):
    """A data set of the Hugging Face Hub, or one saved on disk, read by the package datasets."""

    name: Literal["huggingface"]
    """which corpus"""
    dataset: str
    """its name on the Hub, or a folder that save_to_disk has written"""
    config: str | None
    """which of its configurations; null: its only one, or its default"""
    split: str
    """which of its splits; validation text is held out from it"""
    text_column: str
    """the column that holds the text"""


Corpus = Annotated[
    StdlibCorpusConfig | PythonSourcesCorpusConfig | FilesCorpusConfig | HuggingFaceCorpusConfig, Field(discriminator="name")
]
