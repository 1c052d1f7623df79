"""From token streams to batches: windows of a fixed length, in an order that is a function of the sample number.

Shape suffixes: B batch (samples), S sequence.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from common.counter import derive_key, hash64
from common.errors import UserError
from parallel.batch import IGNORE, Batch
from train.data.shards import TokenStream

# No generic attack distinguishes random Feistel networks of five or more rounds from permutations (Patarin, CRYPTO 2004).
_ROUNDS = 6

Int64Array = npt.NDArray[np.int64]


def permute(position: Int64Array, size: int, seed: int, epoch: int) -> Int64Array:
    """The images of positions (any shape, 0 <= position < size) under the permutation of `size` for (seed, epoch).

    Computed per element, without a table: a balanced Feistel network over the next even number of bits, applied until the
    value is below `size` (cycle walking: Black & Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, method 2).
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = [derive_key(seed, "order", epoch, number) for number in range(_ROUNDS)]
    value = position.astype(np.uint64).reshape(-1)
    pending = np.arange(value.size)  # indices of the values that are not below `size` yet
    while pending.size:
        left, right = value[pending] >> half, value[pending] & mask
        for key in keys:
            left, right = right, left ^ (hash64(key, right) & mask)
        value[pending] = (left << half) | right
        pending = pending[value[pending] >= size]
    return value.astype(np.int64).reshape(position.shape)


class TrainLoader:
    """Training samples by global number: sample g is the same window for every rank, world size and batch size.

    An epoch is `samples_per_epoch` = (tokens - 1) // sequence windows, each once, in an order drawn from (seed, epoch).
    Window w holds the tokens [w S, w S + S] (S inputs, and their targets shifted by one). Targets across document
    borders count, so every position of every sample has a target.
    """

    def __init__(self, stream: TokenStream, sequence: int, seed: int) -> None:
        """Raises `UserError` if the stream is shorter than one window."""
        self.samples_per_epoch = (stream.tokens - 1) // sequence
        if self.samples_per_epoch < 1:
            raise UserError(
                f"the corpus has {stream.tokens} training tokens, too few for one sequence of {sequence}\n"
                f"add text, or type train.sequence={max(1, stream.tokens - 1)} or less"
            )
        self._stream = stream
        self._sequence = sequence
        self._seed = seed

    def windows(self, sample_numbers: Sequence[int]) -> Int64Array:
        """The window of every global sample number (from 0, unbounded), int64 [B]."""
        epoch, position = np.divmod(np.asarray(sample_numbers, dtype=np.int64), self.samples_per_epoch)
        window = np.empty_like(position)
        for number in np.unique(epoch):
            in_epoch = epoch == number
            window[in_epoch] = permute(position[in_epoch], self.samples_per_epoch, self._seed, int(number))
        return window

    def batch(self, sample_numbers: Sequence[int]) -> Batch:
        """The samples with the given global numbers, in this order."""
        starts = self.windows(sample_numbers) * self._sequence
        return _read_batch(self._stream, self._sequence, [(int(start), self._sequence) for start in starts])


class ValidationLoader:
    """The validation split as consecutive windows; the last one is padded with `IGNORE` targets.

    Attributes:
        num_samples: number of windows.
        num_targets: targets that count, in all windows: all tokens but the first, at most `limit_tokens`.
    """

    def __init__(self, stream: TokenStream, sequence: int, limit_tokens: int | None) -> None:
        """Raises `UserError` if there is nothing to predict."""
        available = stream.tokens - 1
        self.num_targets = available if limit_tokens is None else min(available, limit_tokens)
        if self.num_targets < 1:
            raise UserError(
                f"nothing to validate on: {stream.tokens} validation tokens, limit {limit_tokens}\n"
                "add text, or raise data.validation_fraction"
            )
        self.num_samples = -(-self.num_targets // sequence)
        self._stream = stream
        self._sequence = sequence

    def batch(self, sample_numbers: Sequence[int]) -> Batch:
        """The windows with the given numbers; a number of `num_samples` or more gives a row of `IGNORE` targets.

        This keeps ranks in step when the samples do not divide evenly among them.
        """
        windows = []
        for number in sample_numbers:
            start = min(number * self._sequence, self.num_targets)
            windows.append((start, min(self._sequence, self.num_targets - start)))
        return _read_batch(self._stream, self._sequence, windows)

    def share(self, rank: int, ranks: int, rows: int) -> Iterator[Batch]:
        """This rank's micro-batches of `rows` windows, equally many on each of `ranks` ranks. Windows past the end are empty.

        An empty window has no targets.
        """
        for first in range(rank * rows, self.num_samples + rank * rows, rows * ranks):
            yield self.batch(range(first, first + rows))


def _read_batch(stream: TokenStream, sequence: int, windows: Sequence[tuple[int, int]]) -> Batch:
    """Read windows (start, number of targets), and pad each to a whole sequence."""
    shape = (len(windows), sequence)
    tokens_BS = np.zeros(shape, dtype=np.int64)
    targets_BS = np.full(shape, IGNORE, dtype=np.int64)
    document_BS = np.zeros(shape, dtype=np.int64)
    for row, (start, length) in enumerate(windows):
        if length == 0:
            continue
        window = stream.read(start, start + length + 1)
        documents = stream.document_ids(start, start + length)
        tokens_BS[row, :length] = window[:-1]
        targets_BS[row, :length] = window[1:]
        document_BS[row, :length] = documents - documents[0]
        document_BS[row, length:] = documents[-1] - documents[0] + 1
    return Batch(torch.from_numpy(tokens_BS), torch.from_numpy(targets_BS), torch.from_numpy(document_BS))
