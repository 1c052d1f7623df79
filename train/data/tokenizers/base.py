"""The interface of every tokenizer: an encoder, and an identity for the cache."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer

from common.errors import UserError
from train.data.corpus import Corpus
from train.data.progress import Stage

END_OF_TEXT = "<|endoftext|>"
PIECE_CHARACTERS = 1 << 20

TokenArray = npt.NDArray[np.int64]


class Encoder:
    """A tokenizer and its end-of-text token.

    Encoding never parses text as special tokens: a document that contains the literal end-of-text string gets the
    tokens of its characters. `tokenizers` does not store this setting in the JSON, so it is set here.

    Attributes:
        tokenizer: neither adds special tokens, nor truncates, nor pads.
        end_of_text: id of the token that ends a document.
        vocab_size: one more than the largest id.
    """

    def __init__(self, tokenizer: Tokenizer, end_of_text: str) -> None:
        """Raises `UserError` if `end_of_text` is not in the vocabulary."""
        token_id = tokenizer.token_to_id(end_of_text)
        if token_id is None:
            special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
            raise UserError(
                f"the tokenizer has no token {end_of_text!r}\n"
                f"type tokenizer.end_of_text=... with one of its own: {', '.join(special[:20]) or '(it marks none)'}"
            )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.add_special_tokens([AddedToken(end_of_text, special=True, normalized=False)])
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        self.end_of_text = int(token_id)
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, texts: list[str]) -> list[TokenArray]:
        """The tokens of every text, without end-of-text tokens. Raises `UserError` if the tokenizer cannot encode a text."""
        try:
            encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # the library raises bare exceptions
            raise UserError(f"the tokenizer cannot encode the corpus: {error}") from error
        tokens = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        if any((part == self.end_of_text).any() for part in tokens):
            name = self.tokenizer.id_to_token(self.end_of_text)
            raise UserError(
                f"the tokenizer makes its end-of-text token {name!r} from plain text\n"
                "type tokenizer.end_of_text=... with a token that no text turns into"
            )
        return tokens


class TokenizerSource(Protocol):
    """Makes a run's tokenizer. Every module of this package has a class `Source(config)` of this kind, for its section."""

    def identity(self) -> dict[str, object]:
        """Data that tells its tokens from another tokenizer's, for the content hash of the cache.

        Raises:
            UserError: the tokenizer does not exist or is unusable.
        """
        ...

    def encoder(self, corpus: Corpus, stage: Stage) -> Encoder:
        """The tokenizer, trained on the corpus if it needs training."""
        ...


def pieces(text: str, limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a text into pieces of at most `limit` characters, each cut after the last line end within `limit` if any."""
    start = 0
    while len(text) - start > limit:
        end = text.rfind("\n", start, start + limit) + 1
        if end <= start:
            end = start + limit
        yield text[start:end]
        start = end
    yield text[start:]


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json. Raises `UserError` if it is missing or invalid."""
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot read the tokenizer {path}: {reason}\ntype tokenizer.path=.../tokenizer.json") from error
    try:
        return Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises bare exceptions
        raise UserError(
            f"{path} is not a tokenizer.json: {error}\n"
            "type tokenizer.path=... with a file that the tokenizers library has saved"
        ) from error
