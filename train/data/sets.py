"""Named validation sets beside the held-out text: tokenised once with the run's tokenizer, compared with what is trained on."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import UserError, WorkFailed
from train.config.sections.corpus import CorpusConfig, FilesCorpusConfig
from train.data.corpus import Corpus, open_corpus, open_files
from train.data.prepare import build_once, tokenise
from train.data.progress import Stage
from train.data.shards import SCHEMA, SHARD_TOKENS, Shards, SplitWriter, TokenStream, open_set, token_dtype, write_file

# Documents are first compared by their length and by this many of their tokens.
_COMPARED_TOKENS = 8
_BLOCK_DOCUMENTS = 1 << 20


def open_sets(sets: Mapping[str, Sequence[str]] | None, data: CorpusConfig) -> dict[str, Corpus]:
    """The documents of every set of `eval.sets`; they are read as those of the corpus `data` are. No file is opened yet.

    Raises:
        UserError: a set is named "validation", a glob matches nothing, or a path is a folder or an unknown kind of file.
    """
    if "validation" in (sets or {}):
        raise UserError("eval.sets.validation: 'validation' is the text held out from the corpus; give this set another name")
    return {name: _open(name, patterns, data) for name, patterns in (sets or {}).items()}


def prepare_sets(sets: Mapping[str, Corpus], data: CorpusConfig, shards: Shards, *, progress: bool) -> dict[str, Path]:
    """The folder with the tokens of every set, in the cache of the corpus `data`, built where it does not exist yet.

    Any number of processes may call this at once: one builds, the others wait.

    Raises:
        UserError: a set has no text, or a file that cannot be read.
        WorkFailed: the cache folder cannot be written; a file changed while it was read.
    """
    return {name: _prepare(name, corpus, data, shards, progress=progress) for name, corpus in sets.items()}


def overlap(name: str, corpus: Corpus, data: CorpusConfig, folder: Path, shards: Shards) -> str | None:
    """A line that says which share of a set is trained on; None: nothing of it is.

    Files are compared by path, whole documents by their tokens. Of documents whose tail alone is held out (see `Shards.split`)
    only the files are compared.
    """
    trained = {os.path.realpath(path) for path, _ in open_corpus(data).sources}
    files = [os.path.realpath(path) for path, _ in corpus.sources]
    shared_files = sum(path in trained for path in files)
    stream = open_set(folder)
    shared_documents = _shared_documents(stream, shards.train)
    if not shared_files and not shared_documents:
        return None
    return (
        f"eval.sets.{name} overlaps the training text: {shared_documents / stream.documents:.1%} of its {stream.documents:,} "
        f"documents are trained on, and {shared_files / len(files):.1%} of its {len(files):,} files are files of the corpus"
    )


def _open(name: str, patterns: Sequence[str], data: CorpusConfig) -> Corpus:
    typed = f"'eval.sets={{{name}: [%s]}}'"
    if not patterns:
        raise UserError(f"eval.sets.{name} has no files; type {typed % 'text/**/*.jsonl'}")
    options = (data.text_column, data.document_separator) if isinstance(data, FilesCorpusConfig) else ("text", None)
    return open_files(patterns, *options, typed)


def _prepare(name: str, corpus: Corpus, data: CorpusConfig, shards: Shards, *, progress: bool) -> Path:
    stamps = corpus.stamps()
    cache_dir = Path(data.cache_dir).expanduser()
    identity = ["set", SCHEMA, corpus.fingerprint(cache_dir), shards.tokenizer_sha256]
    folder = cache_dir / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]

    def build(temporary: Path, stage: Stage) -> None:
        encoder, dtype = shards.encoder(), token_dtype(shards.vocab_size)
        write_file(temporary / "tokenizer.json", (shards.folder / "tokenizer.json").read_bytes())
        writer = SplitWriter(temporary, "validation", dtype, SHARD_TOKENS)
        try:
            documents = corpus.documents(stage(f"tokenising {name}", sum(size for size, _ in stamps)))
            tokenise((("validation", text) for text in documents), encoder, {"validation": writer})
            if writer.tokens < 2:
                raise UserError(f"eval.sets.{name} has no text: every document is empty or blank")
            split = writer.close()
        finally:
            writer.abandon()
        if corpus.stamps() != stamps:
            raise WorkFailed(f"a file of eval.sets.{name} changed while it was read; run again when it is complete")
        index = {
            "schema": SCHEMA,
            "content_hash": folder.name,
            "tokenizer_sha256": shards.tokenizer_sha256,
            "vocab_size": shards.vocab_size,
            "dtype": dtype,
            "splits": {"validation": split},
        }
        write_file(temporary / "index.json", (json.dumps(index, indent=2) + "\n").encode())

    build_once(folder, build, progress=progress)
    return folder


def _shared_documents(stream: TokenStream, train: TokenStream) -> int:
    """How many documents of `stream` are, token by token, documents of `train`."""
    own_keys = _keys(stream, 0, stream.documents)
    starts, ends = stream.documents_between(0, stream.documents)
    own = [stream.read(start, stop).tobytes() for start, stop in zip(starts, ends, strict=True)]
    found: set[bytes] = set()
    wanted = set(own)
    for first in range(0, train.documents, _BLOCK_DOCUMENTS):
        last = min(first + _BLOCK_DOCUMENTS, train.documents)
        starts, ends = train.documents_between(first, last)
        for number in np.flatnonzero(np.isin(_keys(train, first, last), own_keys)):
            document = train.read(int(starts[number]), int(ends[number])).tobytes()
            if document in wanted:
                found.add(document)
    return sum(document in found for document in own)


def _keys(stream: TokenStream, first: int, last: int) -> npt.NDArray[np.uint64]:
    """A number for each of the documents first to last (uint64) that is the same for equal ones."""
    starts, ends = stream.documents_between(first, last)
    keys = (ends - starts).astype(np.uint64)
    for part in range(_COMPARED_TOKENS):
        tokens = stream.take(starts + (ends - starts) * part // _COMPARED_TOKENS)
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + tokens.astype(np.uint64)  # modulo 2^64
    return keys
