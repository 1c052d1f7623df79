"""Random values by global index: a counter-based 64-bit hash.

Everything random in a run (initial weights, data order) is a function of a key and a global index, computed here.
It does not depend on rank, world size, micro-batch or generator state, so every layout draws the same values.

The mixing function is SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014):
state = key + (index + 1) * golden gamma, then the finaliser of Stafford's "Mix13".
"""

import hashlib

import numpy as np
import numpy.typing as npt

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)

UInt64Array = npt.NDArray[np.uint64]


def derive_key(seed: int, *names: str | int) -> int:
    """A 64-bit key for (seed, names), the same on every machine."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hash64(key: int, index: UInt64Array) -> UInt64Array:
    """64 pseudo-random bits for every index (any shape, uint64)."""
    state = (index + np.uint64(1)) * _GAMMA
    state += np.uint64(key)
    return _mixed(state)


def hash64_of_sums(key: int, first: UInt64Array, second: UInt64Array) -> UInt64Array:
    """`hash64` of every first[i] + second[j], shape (first, second), in fewer passes."""
    return _mixed(((first + np.uint64(1)) * _GAMMA + np.uint64(key))[:, None] + second * _GAMMA)


def _mixed(state: UInt64Array) -> UInt64Array:
    """The finaliser, in place."""
    shifted = np.empty_like(state)
    for shift, factor in ((30, _MIX1), (27, _MIX2)):
        np.right_shift(state, np.uint64(shift), out=shifted)
        state ^= shifted
        state *= factor
    np.right_shift(state, np.uint64(31), out=shifted)
    state ^= shifted
    return state


def normal(key: int, index: UInt64Array) -> npt.NDArray[np.float64]:
    """One standard normal per index, by Box-Muller on the two halves of its hash.

    Computed in float64, so that the cast to a parameter's dtype hides last-bit differences between math libraries.
    The half words give 2^32 levels: the tail ends at sqrt(2 ln 2^33) = 6.8 standard deviations.
    """
    bits = hash64(key, index)
    radius = ((bits >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32
    angle = (bits & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2.0 * np.pi * 2.0**-32)
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    np.cos(angle, out=angle)
    radius *= angle
    return radius
