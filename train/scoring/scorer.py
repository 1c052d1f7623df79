"""Log-likelihood of token sequences and of documents, on any layout.

Shape suffixes: B rows, S sequence.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from parallel.batch import IGNORE, Batch
from parallel.engine.protocol import Engine
from parallel.mesh import Meshes
from train.config import Config
from train.data.tokenizers.base import Encoder, pieces
from train.scoring.watch import Watch

# Documents and characters that are tokenised and scored together, which bounds the memory.
_BLOCK_DOCUMENTS = 1024
_BLOCK_CHARACTERS = 8 << 20

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DocumentScore:
    """What a model needs to encode one document."""

    nats: float
    """minus the log-likelihood of the whole text"""
    tokens: int
    characters: int
    bytes: int
    """of its UTF-8 form"""

    @property
    def bits_per_character(self) -> float | None:
        """None: the text is empty."""
        return self.nats / math.log(2) / self.characters if self.characters else None

    @property
    def bits_per_byte(self) -> float | None:
        """None: the text is empty."""
        return self.nats / math.log(2) / self.bytes if self.bytes else None

    def as_dict(self) -> dict[str, float | int | None]:
        """All numbers, for JSON."""
        per = {"bits_per_character": self.bits_per_character, "bits_per_byte": self.bits_per_byte}
        return {"nats": self.nats, "tokens": self.tokens, "characters": self.characters, "bytes": self.bytes, **per}


@dataclass(frozen=True)
class Scored:
    """A token sequence of which the tokens from number `first` on (at least 1) are scored, given all before them."""

    tokens: Int64Array
    first: int


@dataclass(frozen=True)
class _Window:
    """A part of a sequence that fits into a row, and the targets in it that count."""

    number: int
    tokens: Int64Array
    targets: Int64Array
    starts_text: bool

    @property
    def length(self) -> int:
        return len(self.tokens)


class Scorer:
    """Scores text with an engine. Every rank of the layout makes one, and calls it with the same texts.

    As in training, a text follows an end-of-text token, which predicts its first token and which later ones do not see. A text
    longer than a sequence is cut into windows that begin every half a sequence: each token is scored once, and all but those of
    the first window see at least half a sequence before them. Several texts share a row; attention does not cross from one to
    another, so that a score depends neither on the other texts nor on their order, the batch or the layout, but for rounding.
    """

    def __init__(self, engine: Engine, encoder: Encoder, config: Config, meshes: Meshes, watch: Watch | None = None) -> None:
        """`config`: of the engine, whose micro-batch is how many sequences are scored at a time. `watch` shows the progress."""
        self._watch = watch
        self._engine, self._encoder = engine, encoder
        self._sequence, self._rows = config.train.sequence, config.train.microbatch
        self._rank, self._ranks = meshes.data_rank, config.parallel.layout.data_parallel
        self._group = meshes.data.get_group("data")  # ranks that share sequences are in it, too

    def documents(self, texts: Iterable[str]) -> Iterator[DocumentScore]:
        """The score of every text, in order. A collective: every rank passes the same texts and takes all the scores.

        Texts are taken a thousand at a time, so that memory does not grow with their number.

        Raises:
            UserError: the tokenizer cannot encode a text.
        """
        for block in _blocks(texts):
            encoded = [self.encode(text) for text in block]
            likelihoods = self.log_likelihoods([self.after_end_of_text(tokens) for tokens in encoded])
            for text, tokens, likelihood in zip(block, encoded, likelihoods, strict=True):
                # Never -0.0, the score of an empty text.
                yield DocumentScore(0.0 - likelihood, len(tokens), len(text), len(text.encode()))

    def encode(self, text: str) -> Int64Array:
        """The tokens of a text as in training (int64), without end-of-text tokens."""
        return np.concatenate(self._encoder.encode(list(pieces(text))))

    def after_end_of_text(self, tokens: Int64Array, context: int = 0) -> Scored:
        """A text's tokens, of which those after the first `context` are scored."""
        return Scored(np.concatenate(([self._encoder.end_of_text], tokens)).astype(np.int64), 1 + context)

    def log_likelihoods(self, sequences: Sequence[Scored]) -> list[float]:
        """The log-likelihood in nats of every sequence's scored tokens. The first token of a sequence is an end-of-text token.
        A collective."""
        batches = self._batches([window for number, scored in enumerate(sequences) for window in self._windows(number, scored)])
        sums = torch.zeros(len(sequences), dtype=torch.float64)
        for batch, number_BS in batches:
            scores_BS = self._engine.target_log_probabilities(batch).cpu()
            sums.index_add_(0, number_BS.flatten(), scores_BS.flatten())
        device = self._engine.named_parameters()[0][1].device
        on_device = sums.to(device)
        dist.all_reduce(on_device, group=self._group)
        return [float(value) for value in on_device.tolist()]

    def _windows(self, number: int, scored: Scored) -> Iterator[_Window]:
        """Windows that score each target once."""
        tokens, size, stride = scored.tokens, self._sequence, max(1, self._sequence // 2)
        done = scored.first  # targets below this are scored, or not to be
        # The earliest window whose end is past the first scored target.
        start = -(-max(0, done - size) // stride) * stride
        while done < len(tokens):
            end = min(start + size, len(tokens) - 1)
            targets = tokens[start + 1 : end + 1].copy()
            targets[: max(0, done - start - 1)] = IGNORE
            yield _Window(number, tokens[start:end], targets, starts_text=start == 0)
            done, start = end + 1, start + stride

    def _batches(self, windows: list[_Window]) -> Iterator[tuple[Batch, torch.Tensor]]:
        """This rank's batches, equally many on every rank, and for each position the number of its sequence."""
        rows: list[list[_Window]] = []
        free = 0
        for window in sorted(windows, key=lambda window: -window.length):
            if window.length > free:
                rows.append([])
                free = self._sequence
            rows[-1].append(window)
            free -= window.length
        firsts = range(0, len(rows), self._ranks * self._rows)
        for first in firsts if self._watch is None else self._watch(firsts, len(firsts)):
            own = rows[first + self._rank * self._rows :][: self._rows]
            yield self._batch(own)

    def _batch(self, rows: list[list[_Window]]) -> tuple[Batch, torch.Tensor]:
        shape = (self._rows, self._sequence)
        tokens_BS, document_BS = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        targets_BS, number_BS = np.full(shape, IGNORE, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, windows in enumerate(rows):
            position = document = 0
            for window in windows:
                part = slice(position, position + window.length)
                tokens_BS[row, part], targets_BS[row, part], number_BS[row, part] = window.tokens, window.targets, window.number
                document_BS[row, part] = document
                if window.starts_text:  # its end-of-text token belongs to the document before
                    document += 1
                    document_BS[row, position + 1 : part.stop] = document
                document, position = document + 1, part.stop
            document_BS[row, position:] = document
        # Padding counts to sequence 0, with a score of 0.
        batch = Batch(*(torch.from_numpy(array) for array in (tokens_BS, targets_BS, document_BS)))
        return batch, torch.from_numpy(number_BS)


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Consecutive texts, as many as are scored together."""
    iterator = iter(texts)
    while block := list(islice(iterator, 1)):
        characters = len(block[0])
        for text in islice(iterator, _BLOCK_DOCUMENTS - 1):
            block.append(text)
            characters += len(text)
            if characters >= _BLOCK_CHARACTERS:
                break
        yield block
