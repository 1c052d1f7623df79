"""Tokenise a corpus once: one process builds, the others wait, and no incomplete result is ever used."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, count, islice
from math import ceil
from pathlib import Path
from typing import Literal

import numpy as np

from common.counter import derive_key, hash64
from common.errors import UserError, WorkFailed
from train.config.sections.corpus import CorpusConfig
from train.config.sections.tokenizer import Tokenizer
from train.data.bigram import bigram_loss
from train.data.corpus import Corpus, open_corpus
from train.data.lock import building, exclusive, publish, remove_leftovers
from train.data.progress import Stage, shown
from train.data.shards import SCHEMA, SHARD_TOKENS, SPLITS, SplitWriter, token_dtype, write_file
from train.data.tokenizers import tokenizer_source
from train.data.tokenizers.base import Encoder, TokenizerSource, pieces

SplitName = Literal["train", "validation"]
SplitBy = Literal["document", "position"]

MINIMUM_DOCUMENTS = 50
"""With fewer documents the validation split would be too few of them, so the tail of each is held out instead."""

# The first documents, among which there must be one for each split. If not, the tails are held out.
_SEARCHED_DOCUMENTS = 1 << 20
# Characters per call of the tokenizer, which needs about 100 bytes of memory per token until the call returns.
_BATCH_CHARACTERS = 8 << 20


def prepare(data: CorpusConfig, tokenizer: Tokenizer, *, progress: bool) -> Path:
    """The folder with the tokens of a corpus, built if it does not exist yet. See `build_or_reuse`."""
    return build_or_reuse(data, tokenizer, progress=progress)[0]


def build_or_reuse(
    data: CorpusConfig, tokenizer: Tokenizer, *, progress: bool, shard_tokens: int = SHARD_TOKENS
) -> tuple[Path, bool]:
    """The folder with the tokens of a corpus, and whether this call has built it.

    Any number of processes may call this at once: one builds, the others wait. `progress` allows a progress bar (if standard
    error is a terminal) and a line that says which process is building; without it the call prints nothing.

    Raises:
        UserError: a file, option or tokenizer is unusable; there is no text, or too little for two splits.
        WorkFailed: the cache folder cannot be written; a file changed while it was read.
    """
    corpus = open_corpus(data)
    cache_dir = Path(data.cache_dir).expanduser()
    source = tokenizer_source(tokenizer)
    spec = source.identity()
    stamps = corpus.stamps()
    with shown(progress) as stage:
        fingerprint = corpus.fingerprint(cache_dir, stage("reading", sum(size for size, _ in stamps)))
    identity = [SCHEMA, fingerprint, spec, data.validation_fraction]
    folder = cache_dir / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]

    def build(temporary: Path, stage: Stage) -> None:
        _build(temporary, corpus, data.validation_fraction, source, folder.name, shard_tokens, stage)
        if corpus.stamps() != stamps:
            raise WorkFailed("a file of the corpus changed while it was read; run again when it is complete")

    return folder, build_once(folder, build, progress=progress)


def build_once(folder: Path, build: Callable[[Path, Stage], None], *, progress: bool) -> bool:
    """Let `build` fill a folder of the cache, its index last, unless that was done before. Returns whether it did so now.

    Raises:
        WorkFailed: the cache folder cannot be written.
    """
    try:
        # Checked without the lock, so that a finished cache may be on a read-only file system.
        if (folder / "index.json").is_file():
            return False
        folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(folder.with_name(f"{folder.name}.lock"), announce=progress):
            if (folder / "index.json").is_file():
                return False
            remove_leftovers(folder)
            with building(folder) as temporary, shown(progress) as stage:
                build(temporary, stage)
                publish(temporary, folder)
    except OSError as error:
        raise WorkFailed(
            f"cannot write tokens to {folder.parent}: {error.strerror or error}\n"
            "make room on that disk, or type data.cache_dir=... with a folder that can be written"
        ) from error
    return True


def documents_to_split(fraction: float) -> int | None:
    """The fewest documents that can be split by document without an empty split; None: more than a million."""
    validation = _held_out(0, _SEARCHED_DOCUMENTS, fraction)
    if validation.all() or not validation.any():
        return None
    return max(MINIMUM_DOCUMENTS, int(validation.argmax()) + 1, int(validation.argmin()) + 1)


def _build(
    folder: Path,
    corpus: Corpus,
    fraction: float,
    source: TokenizerSource,
    content_hash: str,
    shard_tokens: int,
    stage: Stage,
) -> None:
    """Tokenise a corpus into an empty folder; write the index last."""
    split_by = _choose_split(corpus, fraction)
    encoder = source.encoder(corpus, stage)
    serialized = encoder.tokenizer.to_str().encode()
    write_file(folder / "tokenizer.json", serialized)
    dtype = token_dtype(encoder.vocab_size)
    writers = {name: SplitWriter(folder, name, dtype, shard_tokens) for name in SPLITS}
    try:
        documents = corpus.documents(stage("tokenising", sum(size for size, _ in corpus.stamps())))
        tokenise(_divide(documents, split_by, fraction), encoder, writers)
        for name, writer in writers.items():
            if writer.tokens < 2:
                raise UserError(
                    f"too little text: the {name} split would be empty (validation_fraction is {fraction})\n"
                    "add text to data.files, or type another data.validation_fraction=..."
                )
        splits = {name: writer.close() for name, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.abandon()
    train, validation = (writers[name].stream(encoder.vocab_size) for name in SPLITS)
    index = {
        "schema": SCHEMA,
        "content_hash": content_hash,
        "tokenizer_sha256": hashlib.sha256(serialized).hexdigest(),
        "vocab_size": encoder.vocab_size,
        "end_of_text": encoder.end_of_text,
        "dtype": dtype,
        "split": split_by,
        "bigram_loss": bigram_loss(train, validation, encoder.vocab_size),
        "splits": splits,
    }
    write_file(folder / "index.json", (json.dumps(index, indent=2) + "\n").encode())


def _choose_split(corpus: Corpus, fraction: float) -> SplitBy:
    needed = documents_to_split(fraction)
    documents = sum(1 for _ in islice(corpus.documents(), needed or 1))
    if not documents:
        raise UserError("the corpus has no text at all: every document is empty or blank; check data.files")
    return "document" if documents == needed else "position"


def _held_out(start: int, stop: int, fraction: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each of the documents start to stop is for validation. This depends on no seed: all runs share the split."""
    bits = hash64(derive_key(0, "validation"), np.arange(start, stop, dtype=np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53 < fraction


def _divide(documents: Iterable[str], split_by: SplitBy, fraction: float) -> Iterator[tuple[SplitName, str]]:
    """The texts of all documents, each with its split."""
    if split_by == "document":
        block = 1 << 12
        flags = chain.from_iterable(_held_out(start, start + block, fraction) for start in count(0, block))
        for held_out, text in zip(flags, documents, strict=False):
            yield ("validation" if held_out else "train"), text
        return
    for text in documents:
        # Cut between characters, not tokens: both parts are valid text and have an exact number of bytes.
        cut = max(1, len(text) - ceil(len(text) * fraction))
        yield "train", text[:cut]
        if cut < len(text):
            yield "validation", text[cut:]


def tokenise(texts: Iterable[tuple[SplitName, str]], encoder: Encoder, writers: Mapping[SplitName, SplitWriter]) -> None:
    """Write the tokens of every text, and an end-of-text token after it, to the writer of its split."""
    batch: list[tuple[SplitName, str, bool]] = []
    characters = 0
    for name, text in texts:
        parts = list(pieces(text))
        for number, part in enumerate(parts, 1):
            batch.append((name, part, number == len(parts)))
            characters += len(part)
            if characters >= _BATCH_CHARACTERS:
                _write(batch, encoder, writers)
                batch, characters = [], 0
    _write(batch, encoder, writers)


def _write(batch: list[tuple[SplitName, str, bool]], encoder: Encoder, writers: Mapping[SplitName, SplitWriter]) -> None:
    end = np.array([encoder.end_of_text], dtype=np.int64)
    for (name, text, is_last), tokens in zip(batch, encoder.encode([text for _, text, _ in batch]), strict=True):
        writer = writers[name]
        writer.bytes += len(text.encode())
        writer.write(tokens)
        if is_last:
            writer.write(end)
            writer.end_document()
