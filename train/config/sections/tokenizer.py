"""The tokenizer."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from train.config.sections.types import STRICT, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BpeTokenizerConfig:
    """Byte-level BPE trained on the corpus."""

    name: Literal["bpe"]
    """which tokenizer"""
    vocab_size: Annotated[int, Field(ge=257)]
    """entries: 256 bytes, the end-of-text token, the merges"""
    train_bytes: PositiveInt
    """train on at most this many bytes, from the start of the corpus"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BytesTokenizerConfig:
    """Plain bytes: token i is byte i, token 256 is the end-of-text token."""

    name: Literal["bytes"]
    """which tokenizer"""

    @property
    def vocab_size(self) -> int:
        """Entries: 256 bytes and the end of a text."""
        return 257


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FileTokenizerConfig:
    """Any tokenizer.json of the `tokenizers` library."""

    name: Literal["file"]
    """which tokenizer"""
    path: str
    """the tokenizer.json"""
    end_of_text: str
    """the token appended to every document; it must be in the vocabulary"""

    @property
    def vocab_size(self) -> int:
        """Entries: at least none; the file is read later."""
        return 0


Tokenizer = Annotated[BpeTokenizerConfig | BytesTokenizerConfig | FileTokenizerConfig, Field(discriminator="name")]
