"""Random integers by (seed, step, parameter name, global position), on the CPU. `quant.noise.kernels` has the same for GPUs.

A draw is 16 bits of the counter hash of `common.counter`, whose counter is made of the step, the row and a quarter of the
column: four neighbouring columns share a 64-bit word, the lowest 16 bits first. So a slice of a matrix has the draws of the
whole matrix at its place, and nothing is ever stored.

The noise of Gaussian weight sampling (Ahn & Yoo, arXiv 2505.11170) is R = round(N(0, 1) / 2). The paper builds it from random
words by bit operations that are not published; the recipe here is our own: the draw is compared with integer thresholds.
"""

import sys
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from common.counter import derive_key, hash64_of_sums

assert sys.byteorder == "little", "four draws are the bytes of a word in the order of memory"

ONE, TWO = 22_371, 32_680
"""A signed 16-bit draw x gives |R| >= 1 where x >= ONE or x < -ONE, and |R| = 2 where x >= TWO or x < -TWO."""

PROBABILITIES = {
    value: share / 2**16 for value, share in {-2: 2**15 - TWO, -1: TWO - ONE, 0: 2 * ONE, 1: TWO - ONE, 2: 2**15 - TWO}.items()
}
"""Of each value of R: 44,742 / 2^16 for 0, 10,309 / 2^16 for each of +-1, 88 / 2^16 for each of +-2. Ideal are 0.682689,
0.157305 and 0.00134961, from which these differ by at most 2.1e-5; |R| >= 3 (5.7e-7 together) is never drawn. Their variance is
0.325348; ideal 0.3254."""

STEP_BITS, ROW_BITS, WORD_BITS = 24, 20, 20
"""How the counter is divided: steps up to 2^24, rows up to 2^20, words of four columns up to 2^20."""

_CHUNK = 1 << 15  # words: they and their temporaries stay in the processor's cache


def noise_key(seed: int, name: str) -> int:
    """The key of a parameter's draws, 64 bits."""
    return derive_key(seed, "noise", name)


def draws(key: int, step: int, shape: Sequence[int], offset: Sequence[int]) -> Iterator[npt.NDArray[np.int16]]:
    """Uniform signed 16-bit integers of the slice of `shape` at `offset` of a matrix, a few whole rows at a time."""
    (rows, columns), (first_row, first_column) = shape, offset
    first_word, end_word = first_column // 4, -(-(first_column + columns) // 4)
    assert 0 <= step < 1 << STEP_BITS, f"step {step}"
    assert first_row + rows <= 1 << ROW_BITS, f"{first_row + rows} rows"
    assert end_word <= 1 << WORD_BITS, f"{first_column + columns} columns"
    word = np.arange(first_word, end_word, dtype=np.uint64) + np.uint64(step << ROW_BITS + WORD_BITS)
    skipped, at_once = first_column - 4 * first_word, max(1, _CHUNK // max(1, end_word - first_word))
    for start in range(first_row, first_row + rows, at_once):
        row = np.arange(start, min(start + at_once, first_row + rows), dtype=np.uint64) << np.uint64(WORD_BITS)
        yield hash64_of_sums(key, row, word).view(np.int16)[:, skipped : skipped + columns]


def rounded(draw: npt.NDArray[np.int16], out: npt.NDArray[np.int8]) -> None:
    """R = round(N(0, 1) / 2) of each draw, with the probabilities `PROBABILITIES`."""
    np.greater_equal(draw, ONE, out=out.view(np.bool_))
    for compare, threshold, add in (
        (np.greater_equal, TWO, np.add),
        (np.less, -ONE, np.subtract),
        (np.less, -TWO, np.subtract),
    ):
        add(out, compare(draw, threshold).view(np.int8), out=out)


def rounded_normal_by_key(key: int, step: int, shape: Sequence[int], offset: Sequence[int]) -> npt.NDArray[np.int8]:
    """`quant.noise.rounded_normal` by the key of (seed, name)."""
    out, row = np.empty(tuple(shape), dtype=np.int8), 0
    for draw in draws(key, step, shape, offset):
        rounded(draw, out[row : row + len(draw)])
        row += len(draw)
    return out


def uniform_by_key(key: int, step: int, shape: Sequence[int], offset: Sequence[int]) -> npt.NDArray[np.float32]:
    """Uniform noise in (-1/2, 1/2), symmetric: the middles of 2^16 intervals, from the same draws as `rounded_normal`.

    The noise of DiffQ (Défossez, Adi & Synnaeve, arXiv 2104.09987); variance 1/12.
    """
    out, row = np.empty(tuple(shape), dtype=np.float32), 0
    for draw in draws(key, step, shape, offset):
        part = out[row : row + len(draw)]
        np.add(draw, np.float32(0.5), out=part)
        part *= np.float32(2.0**-16)
        row += len(draw)
    return out
