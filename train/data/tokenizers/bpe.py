"""Byte-level BPE trained on the corpus."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from train.config.sections.tokenizer import BpeTokenizerConfig
from train.data.corpus import Corpus
from train.data.progress import Stage
from train.data.readers import Advance
from train.data.tokenizers.base import END_OF_TEXT, Encoder, pieces


class Source:
    """See `TokenizerSource`."""

    def __init__(self, config: BpeTokenizerConfig) -> None:
        self._config = config

    def identity(self) -> dict[str, object]:
        """Its section, which with the corpus determines the tokenizer."""
        return asdict(self._config)

    def encoder(self, corpus: Corpus, stage: Stage) -> Encoder:
        """Train the tokenizer on the first bytes of the corpus."""
        limit = self._config.train_bytes
        advance = stage("training tokenizer", min(limit, sum(size for size, _ in corpus.stamps())))
        return Encoder(train_bpe(corpus.documents(), self._config.vocab_size, limit, advance), END_OF_TEXT)


def train_bpe(documents: Iterable[str], vocab_size: int, train_bytes: int, advance: Advance) -> Tokenizer:
    """Byte-level BPE of `vocab_size` entries, learned from the first `train_bytes` UTF-8 bytes of the documents.

    The same documents give the same tokenizer. A small corpus may give fewer entries.
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
