"""Which sample is the p-th of a stratum: a keyed permutation, computed and never stored.

Position p lies in pass p // size, and every pass has a permutation of its own: an eight-round Feistel
network over the next even power of two, walked until the result lies inside (cycle walking, Black and
Rogaway, 2002). So any position of any pass costs the same, and nothing the size of the data exists.
"""

import numpy as np
import numpy.typing as npt

from pipeline.hashing import Words, mix64

_ROUNDS = 8  # with 4, the permutations of ten members are visibly uneven


def order_of(positions: npt.NDArray[np.int64], size: int, key: int) -> npt.NDArray[np.int64]:
    """Return which of `size` members stands at each position, positions counting on over the passes.

    `positions` are at least 0 and `key` is a hash (`derive_key`). Each pass, `size` consecutive
    positions, holds every member once.
    """
    passes, within = np.divmod(positions.astype(np.uint64), np.uint64(size))
    return permute(within, size, mix64(passes ^ np.uint64(key))).astype(np.int64)


def permute(values: Words, size: int, keys: Words) -> Words:
    """Return each value's image, in 0..size-1, under the permutation that its key selects."""
    half_bits = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    result = _feistel(values, keys, half_bits)
    outside = np.flatnonzero(result >= size)
    while len(outside):
        result[outside] = _feistel(result[outside], keys[outside], half_bits)
        outside = outside[result[outside] >= size]
    return result


def _feistel(values: Words, keys: Words, half_bits: np.uint64) -> Words:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for turn in range(_ROUNDS):
        left, right = right, left ^ (mix64(right ^ mix64(keys + np.uint64(turn))) & mask)
    return (left << half_bits) | right
