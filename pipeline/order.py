"""Which sample is the p-th of a stratum: a keyed permutation, computed and never stored.

A Feistel network over the next power of two, walked until the result lies inside (cycle walking, Black and Rogaway,
2002). So any position of any pass costs the same, and nothing the size of the data exists.

NumPy costs by the call, not by the number: 512 members take hardly longer than one. So whoever wants something
permuted is a generator that asks for it, and `together` answers all who ask at the same time at once.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.hashing import Words, mix64

Ids = npt.NDArray[np.int64]
T = TypeVar("T")

_FEW = 16
_ROUNDS = 8
_ROUND_NUMBERS = np.arange(_ROUNDS, dtype=np.uint64)[:, None]
_WORD_BITS = np.uint64(64)
_ONE = np.uint64(1)


@dataclass(frozen=True)
class Shuffle:
    """Values to be permuted, each among 0..size-1 of its own, by a key of its own: see `permute`."""

    values: Ids
    sizes: Ids
    keys: Words


Asking = Generator[Shuffle, Ids, T]
"""Something on its way that asks for permutations and is sent their results."""


def together(asking: Sequence[Asking[T]]) -> list[T]:
    """Run all to their end, permuting for all of them at once; each must ask at least once."""
    results: dict[int, T] = {}
    asked = {number: next(one) for number, one in enumerate(asking)}
    while asked:
        answers = _permute_all(list(asked.values()))
        waiting, asked = list(asked), {}
        for number, answer in zip(waiting, answers, strict=True):
            try:
                asked[number] = asking[number].send(answer)
            except StopIteration as end:
                results[number] = end.value
    return [results[number] for number in range(len(asking))]


def _permute_all(shuffles: Sequence[Shuffle]) -> list[Ids]:
    values, sizes = (np.concatenate([getattr(one, column) for one in shuffles]) for column in ("values", "sizes"))
    answer = permute(values, sizes, np.concatenate([one.keys for one in shuffles]))
    return np.split(answer, np.cumsum([len(one.values) for one in shuffles])[:-1])


def order_of(positions: Ids, size: int, key: int) -> Ids:
    """Return which of `size` members stands at each position, positions counting on over the passes.

    `positions` are at least 0 and `key` is a hash (`derive_key`). Each pass, `size` consecutive
    positions, holds every member once.
    """
    passes, within = np.divmod(positions, size)
    return permute(within, np.full(len(within), size), pass_keys(passes, key))


def pass_keys(passes: Ids, key: int | Words) -> Words:
    """Return a key for each pass, so that every pass has a permutation of its own."""
    return passes.astype(np.uint64) ^ np.asarray(key, np.uint64)


def permute(values: Ids, sizes: Ids, keys: Words) -> Ids:
    """Return each value's image, in 0..size-1, under the permutation that its key selects.

    Keys that differ in anything select different ones, so passes may be counted into a hash.
    """
    words, few = values.astype(np.uint64), sizes <= _FEW
    result = np.empty_like(words)
    result[few] = _by_sorting(values[few], sizes[few], keys[few])
    result[~few] = _by_walking(words[~few], sizes[~few].astype(np.uint64), keys[~few])
    return result.astype(np.int64)


def _by_sorting(values: Ids, sizes: Ids, keys: Words) -> Ids:
    """Permute within few by sorting draws, since a network over so little cannot reach all orders equally often."""
    places = np.arange(_FEW, dtype=np.uint64)
    draws = mix64(keys[:, None] ^ mix64(places))
    draws[places >= sizes[:, None]] = np.iinfo(np.uint64).max
    return np.take_along_axis(np.argsort(draws, axis=1), values[:, None], axis=1)[:, 0]


def _by_walking(values: Words, sizes: Words, keys: Words) -> Words:
    network = _Network.of(sizes, keys)
    result = network.applied_to(values)
    outside = np.flatnonzero(result >= sizes)
    network = network.part(outside)
    while len(outside):
        walked = network.applied_to(result[outside])
        result[outside] = walked
        still = np.flatnonzero(walked >= network.sizes)
        outside, network = outside[still], network.part(still)
    return result


@dataclass(frozen=True)
class _Network:
    """A Feistel network for each value, over the least power of two that holds its size."""

    sizes: Words
    high_bits: Words
    low_bits: Words
    round_keys: Words
    """`[rounds, values]`, odd."""

    @classmethod
    def of(cls, sizes: Words, keys: Words) -> "_Network":
        _, bits = np.frexp((sizes - _ONE).astype(np.float64))  # the bit length, exact below 2**53
        low_bits = bits.astype(np.uint64) >> _ONE
        return cls(sizes, bits.astype(np.uint64) - low_bits, low_bits, mix64(keys ^ mix64(_ROUND_NUMBERS)) | _ONE)

    def part(self, which: npt.NDArray[np.intp]) -> "_Network":
        return _Network(self.sizes[which], self.high_bits[which], self.low_bits[which], self.round_keys[:, which])

    def applied_to(self, values: Words) -> Words:
        left, right = values >> self.low_bits, values & ((_ONE << self.low_bits) - _ONE)
        shifts = _WORD_BITS - self.high_bits, _WORD_BITS - self.low_bits
        for turn, keys in enumerate(self.round_keys):
            hashed = ((right ^ keys) * keys) >> shifts[turn % 2]  # multiply-shift (Dietzfelbinger et al., 1997), keyed
            left, right = right, left ^ hashed
        return (left << self.low_bits) | right
