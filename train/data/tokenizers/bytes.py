"""A tokenizer whose tokens are the bytes of a text."""

from dataclasses import asdict

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from train.config.sections.tokenizer import BytesTokenizerConfig
from train.data.corpus import Corpus
from train.data.progress import Stage
from train.data.tokenizers.base import END_OF_TEXT, Encoder, TokenArray


class Source:
    """See `TokenizerSource`."""

    def __init__(self, config: BytesTokenizerConfig) -> None:
        self._config = config

    def identity(self) -> dict[str, object]:
        """Its section."""
        return asdict(self._config)

    def encoder(self, corpus: Corpus, stage: Stage) -> Encoder:
        """The same for every corpus."""
        return BytesEncoder(bytes_tokenizer(), END_OF_TEXT)


class BytesEncoder(Encoder):
    """Gives the same ids as `Encoder(bytes_tokenizer(), ...)`, but faster: without a string per token."""

    def encode(self, texts: list[str]) -> list[TokenArray]:
        """The UTF-8 bytes of every text."""
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) for text in texts]


def bytes_tokenizer() -> Tokenizer:
    """Token i is byte i, token 256 is the end-of-text token."""
    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _byte_characters() -> list[str]:
    """The character that represents each byte in byte-level vocabularies (GPT-2's `bytes_to_unicode`)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    characters = []
    substitutes = 0
    for byte in range(256):
        if byte in printable:
            characters.append(chr(byte))
        else:
            characters.append(chr(256 + substitutes))
            substitutes += 1
    return characters
