"""Tokenizers: trained on the corpus, plain bytes, or from a file."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from common.errors import UserError
from train.data.readers import Advance

END_OF_TEXT = "<|endoftext|>"
PIECE_CHARACTERS = 1 << 20

TokenArray = npt.NDArray[np.int64]


class Encoder:
    """A tokenizer and its end-of-text token.

    Encoding never parses text as special tokens: a document that contains the literal end-of-text string gets the
    tokens of its characters. `tokenizers` does not keep that setting in the JSON, so it is made here.

    Attributes:
        tokenizer: adds nothing to a text, truncates nothing, pads nothing.
        end_of_text: id of the token that ends a document.
        vocab_size: one more than the largest id.
    """

    def __init__(self, tokenizer: Tokenizer, end_of_text: str) -> None:
        """Raises `UserError` if `end_of_text` is not in the vocabulary."""
        identity = tokenizer.token_to_id(end_of_text)
        if identity is None:
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
        self.end_of_text = int(identity)
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, texts: list[str]) -> list[TokenArray]:
        """The tokens of every text, without an end of text. Raises `UserError` if the tokenizer has none for a text."""
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


class BytesEncoder(Encoder):
    """The same ids as `Encoder` on the tokenizer of `bytes_tokenizer`, without its detour over a string per token."""

    def encode(self, texts: list[str]) -> list[TokenArray]:
        """The UTF-8 bytes of every text."""
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) for text in texts]


def pieces(text: str, limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a long text into pieces of at most `limit` characters, behind the last line end in reach if there is one."""
    start = 0
    while len(text) - start > limit:
        end = text.rfind("\n", start, start + limit) + 1
        if end <= start:
            end = start + limit
        yield text[start:end]
        start = end
    yield text[start:]


def bytes_tokenizer() -> Tokenizer:
    """Token i is byte i, token 256 the end of a text."""
    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def train_bpe(documents: Iterable[str], vocab_size: int, train_bytes: int, advance: Advance) -> Tokenizer:
    """Byte-level BPE of `vocab_size` entries, learned from the first `train_bytes` UTF-8 bytes of the documents.

    The same documents give the same tokenizer. A corpus too small for so many merges gives fewer entries.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_bytes(documents, train_bytes, advance), trainer=trainer)
    return tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json. Raises `UserError` if it is missing or something else."""
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


def _first_bytes(documents: Iterable[str], limit: int, advance: Advance) -> Iterator[str]:
    for document in documents:
        for text in pieces(document):
            content = text.encode()
            if len(content) >= limit:
                yield content[:limit].decode(errors="ignore")
                advance(limit)
                return
            yield text
            advance(len(content))
            limit -= len(content)


def _byte_characters() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies (GPT-2's `bytes_to_unicode`)."""
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
