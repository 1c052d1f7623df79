"""A tokenizer.json of the `tokenizers` library."""

import hashlib
from pathlib import Path

from train.config.sections.tokenizer import FileTokenizerConfig
from train.data.corpus import Corpus
from train.data.progress import Stage
from train.data.tokenizers.base import Encoder, read_tokenizer


class Source:
    """See `TokenizerSource`."""

    def __init__(self, config: FileTokenizerConfig) -> None:
        self._path, self._end_of_text = Path(config.path).expanduser(), config.end_of_text

    def identity(self) -> dict[str, object]:
        """The hash of the file's content, and its end of text. Raises for an unusable file, before any lock is taken."""
        self._read()
        return {"sha256": hashlib.sha256(self._path.read_bytes()).hexdigest(), "end_of_text": self._end_of_text}

    def encoder(self, corpus: Corpus, stage: Stage) -> Encoder:
        """The same for every corpus."""
        return self._read()

    def _read(self) -> Encoder:
        return Encoder(read_tokenizer(self._path), self._end_of_text)
