"""Which sample stands at a place of a stratum: images, images window by window, or identities.

A place is a unit: what a batch takes side by side, K images of one identity where a mix asks for that, else one.
A pass holds every unit once. The number that comes with a sample counts how often it was met before, and is
never the same twice: with the sample, it decides how the image is augmented.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array

from pipeline.hashing import derive_key, mix64
from pipeline.order import Asking, Ids, Shuffle, order_of, pass_keys

Rows = range | npt.NDArray[np.uint32]
"""Sample ids; a range where they are consecutive, so that a plain set costs no memory."""
Met = tuple[Ids, Ids]
"""Sample ids, and in which pass each one is met."""

_CHUNK = 64


class Members(Protocol):
    """The samples of a stratum in their order."""

    @property
    def ids(self) -> Rows:
        """All of them, each once."""

    @property
    def num_units(self) -> int:
        """Units of a pass."""

    def at(self, positions: Ids, key: int) -> Asking[Met]:
        """Find the samples of the units at some positions, which count on over the passes: K for each, side by side."""

    def replacements(self, sample_id: int, pass_number: int, key: int) -> Iterator[int]:
        """Yield others of the stratum, each once, in an order that depends on all three."""


class Images:
    """Every image once in a pass, in any order."""

    def __init__(self, ids: Rows) -> None:
        self.ids = ids

    @property
    def num_units(self) -> int:
        """Units of a pass: the images."""
        return len(self.ids)

    def at(self, positions: Ids, key: int) -> Asking[Met]:
        """Find the samples at some positions."""
        passes, within = np.divmod(positions, self.num_units)
        places = yield Shuffle(within, np.full(len(within), self.num_units), pass_keys(passes, key))
        return _take(self.ids, places), passes

    def replacements(self, sample_id: int, pass_number: int, key: int) -> Iterator[int]:
        """Yield all others."""
        return _shuffled(self.ids, sample_id, derive_key(key, sample_id, pass_number))


class Windows(Images):
    """Every image once in a pass: shards in any order, images in any order within so many shards."""

    def __init__(self, ids: Rows, shard_starts: Ids, window_shards: int) -> None:
        """Take rising sample ids and the first ids of all shards."""
        super().__init__(ids)
        self._window_shards = window_shards
        bounds = _places_of(ids, shard_starts)
        counts = np.diff(bounds, append=len(ids))
        self._starts, self._counts = bounds[counts > 0], counts[counts > 0]
        self._lay_out = lru_cache(2)(self._new_layout)  # a batch may see the end of a pass and the next one's begin

    def at(self, positions: Ids, key: int) -> Asking[Met]:
        """Find the samples at some positions."""
        passes, within = np.divmod(positions, self.num_units)
        numbers, turns = np.unique(passes, return_inverse=True)
        layouts = [self._lay_out(number, key) for number in numbers.tolist()]
        # The passes are laid end to end, so that one search serves all of them.
        shards = np.concatenate([shards for shards, _ in layouts])
        firsts = np.concatenate([begins + turn * self.num_units for turn, (_, begins) in enumerate(layouts)])
        windows = firsts.reshape(len(layouts), -1)[:, :: self._window_shards].ravel()
        window = np.searchsorted(windows, turns * self.num_units + within, "right") - 1
        begin = windows[window] - turns * self.num_units
        sizes = np.diff(windows, append=len(layouts) * self.num_units)[window]
        keys = pass_keys(passes, mix64(pass_keys(begin, key)))
        places = windows[window] + (yield Shuffle(within - begin, sizes, keys))
        shard = np.searchsorted(firsts, places, "right") - 1
        return _take(self.ids, self._starts[shards[shard]] + places - firsts[shard]), passes

    def _new_layout(self, pass_number: int, key: int) -> tuple[Ids, Ids]:
        """Return the order of the shards in a pass, and the position at which each one begins."""
        numbers = np.arange(len(self._counts), dtype=np.uint64)
        shards = np.argsort(mix64(numbers ^ np.uint64(derive_key(key, "shards", pass_number))))
        return shards, np.cumsum(self._counts[shards]) - self._counts[shards]


class Identities:
    """Visits of identities, each of which gives K of its images.

    An identity with n >= K images gives distinct ones, n // K times in a pass over them; those left over come in
    another pass. One with fewer gives all, and again until they are K.
    """

    def __init__(self, ids: Rows, labels: npt.NDArray[np.int32], per_visit: int, *, equally: bool) -> None:
        """Take samples with their labels; visit identities `equally` often, or as often as their images allow."""
        members, starts = group_by(labels)
        self.ids: npt.NDArray[np.uint32] = _take(ids, members).astype(np.uint32)
        self._starts = starts
        self._per_visit = per_visit
        self.counts = np.diff(starts)
        """Images of each identity."""
        self._visits = np.ones_like(self.counts) if equally else np.maximum(1, self.counts // per_visit)
        self._first_units = np.cumsum(self._visits) - self._visits

    @property
    def num_units(self) -> int:
        """Units of a pass: visits of an identity."""
        return int(self._first_units[-1] + self._visits[-1])

    def at(self, positions: Ids, key: int) -> Asking[Met]:
        """Find the samples of the visits at some positions, K side by side."""
        passes, within = np.divmod(positions, self.num_units)
        units = yield Shuffle(within, np.full(len(within), self.num_units), pass_keys(passes, key))
        identity = np.searchsorted(self._first_units, units, "right") - 1
        visits = passes * self._visits[identity] + units - self._first_units[identity]
        images = self._images_of(visits, self.counts[identity])
        identity = np.repeat(identity, self._per_visit)
        counts = self.counts[identity]
        passes, within = np.divmod(images, counts)
        places = yield Shuffle(within, counts, pass_keys(passes, mix64(pass_keys(identity, key))))
        return self.ids[self._starts[identity] + places].astype(np.int64), passes

    def _images_of(self, visits: Ids, counts: Ids) -> Ids:
        """Return the positions of the visits' images among all that their identities ever show, pass after pass."""
        wholes, parts = np.divmod(visits, np.maximum(1, counts // self._per_visit))
        passes = wholes * -(-self._per_visit // counts)  # several for a visit where one does not hold K images
        firsts = passes * counts + parts * self._per_visit
        return np.repeat(firsts, self._per_visit) + np.tile(np.arange(self._per_visit), len(firsts))

    def replacements(self, sample_id: int, pass_number: int, key: int) -> Iterator[int]:
        """Yield the other images of the same identity, then the images of others."""
        key = derive_key(key, sample_id, pass_number)
        identity = int(np.searchsorted(self._starts, np.flatnonzero(self.ids == sample_id)[0], "right")) - 1
        own = self.ids[self._starts[identity] : self._starts[identity + 1]]
        yield from _shuffled(own, sample_id, key)
        same = set(own.tolist())
        yield from (other for other in _shuffled(self.ids, sample_id, key) if other not in same)


def group_by(codes: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], Ids]:
    """Return the positions of the codes with those of equal ones side by side, rising, and where each code begins.

    The beginnings end with the number of codes. A counting sort, which SciPy has as the change of a sparse
    matrix's form: 42.5 M codes of 2 M take 2 s, where NumPy's stable sort takes 10.
    """
    codes = codes - codes.min()
    positions = np.arange(len(codes), dtype=np.int32)
    matrix = coo_array((np.ones(len(codes), np.bool_), (codes, positions))).tocsr()
    starts = matrix.indptr.astype(np.int64)
    return matrix.indices, np.append(starts[:-1][np.diff(starts) > 0], len(codes))


def _take(ids: Rows, places: npt.NDArray[np.int64] | npt.NDArray[np.int32]) -> Ids:
    if isinstance(ids, range):
        return places.astype(np.int64) + ids.start
    return ids[places].astype(np.int64)


def _places_of(ids: Rows, first_ids: Ids) -> Ids:
    """Return at which place of rising ids each of the others would stand."""
    if isinstance(ids, range):
        return np.clip(first_ids - ids.start, 0, len(ids))
    return np.searchsorted(ids, first_ids.astype(np.uint32))


def _shuffled(ids: Rows, without: int, key: int) -> Iterator[int]:
    for start in range(0, len(ids), _CHUNK):
        places = order_of(np.arange(start, min(start + _CHUNK, len(ids))), len(ids), key)
        yield from (one for one in _take(ids, places).tolist() if one != without)
