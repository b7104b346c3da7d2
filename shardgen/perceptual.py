"""Perceptual hashes: a copy that was encoded or resized again differs from its original in few bits.

The hash is imagehash's phash with 256 bits. Bits that differ, measured on 4,302 faces of 112 and 200 pixels (Database
of Faces, UTKFace, and views warped from UTKFace):

    JPEG again at quality 95 / 75 / 50                             at most 6 / 8 / 10
    resized 112 -> 96 or 64 -> 112, or 200 -> 112                  at most 8
    resized by 96/112 and back, 20 levels brighter, quality 50     at most 18
    20 % brighter, highlights clipped                              94 % at most 16, all at most 32
    2 % cropped off each side                                      20 to 34 on average, at most 58
    13 pairs of files in UTKFace that show one photograph          0 to 18
    2 more such pairs, one file with a watermark                   38 and 40
    different photographs of one person (1,080 pairs)              at least 22, 1 % within 38
    different people (4.4 million pairs)                           at least 56

64 bits, the usual size, cannot tell these apart: copies differ in up to 6, yet so do 62 of the 1,080 pairs of different
photographs. Mirrored and cropped copies are not found.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import faiss
import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree

from shardgen.errors import DataError, UsageError
from shardgen.images import Unreadable, decode
from shardgen.shardset import ShardSet

BITS = 256
MAX_DISTANCE = 18
"""Bits in which copies of one photograph differ at most, unless told otherwise: see above."""
LARGEST_DISTANCE = 31
_CHUNK = 1_000  # images a job
_QUERIES = 4_096
_INDEXED = 1 << 20  # hashes in an index at a time: about 1 GB
_PENDING = 1 << 20  # pairs that are kept until those not needed are dropped

Hashes = npt.NDArray[np.uint8]
"""`[images, 32]`."""
Rows = npt.NDArray[np.int64]

_log = logging.getLogger("facemix.shard")


@dataclass(frozen=True)
class Edges:
    """Pairs of rows, and in how many bits they differ."""

    first: Rows
    second: Rows
    distance: Rows

    def __len__(self) -> int:
        return len(self.first)

    @classmethod
    def joined(cls, parts: Sequence["Edges"]) -> "Edges":
        """Return all of the parts' pairs."""
        columns = zip(*((one.first, one.second, one.distance) for one in parts), strict=True)
        return cls(*(np.concatenate(column).astype(np.int64) for column in columns))


def perceptual_hash(image: bytes) -> npt.NDArray[np.uint8]:
    """Return the 32 bytes of an encoded image's hash; raise `Unreadable` when it does not decode."""
    return np.packbits(imagehash.phash(Image.fromarray(decode(image)), hash_size=16).hash)


def hash_images(parts: Sequence[tuple[Path, Rows]], workers: int) -> Hashes:
    """Return the hashes of some rows of some sets, in the order given."""
    _opened.cache_clear()  # a set may have been made anew in its place
    jobs = [(folder, rows[at : at + _CHUNK]) for folder, rows in parts for at in range(0, len(rows), _CHUNK)]
    hashes: list[Hashes] = [np.empty((0, BITS // 8), np.uint8)]
    for done in _hashed(jobs, min(workers, len(jobs))):
        hashes.append(done)
        if len(hashes) % 100 == 0:
            _log.info("%d of %d images hashed", sum(map(len, hashes)), sum(len(rows) for _, rows in jobs))
    return np.concatenate(hashes)


def _hashed(jobs: Sequence[tuple[Path, Rows]], workers: int) -> Iterator[Hashes]:
    if workers <= 1:
        yield from map(_hash_rows, jobs)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        yield from pool.map(_hash_rows, jobs)


def _hash_rows(job: tuple[Path, Rows]) -> Hashes:
    folder, rows = job
    try:
        return np.stack([perceptual_hash(_opened(folder).image(row)) for row in rows.tolist()])
    except Unreadable as error:
        raise DataError(f"{folder}: an image {error}; see `facemix verify {folder} --deep`") from None


@lru_cache(maxsize=8)
def _opened(folder: Path) -> ShardSet:
    return ShardSet(folder)


def close_pairs(hashes: Hashes, max_distance: int = MAX_DISTANCE) -> Iterator[Edges]:
    """Yield, block by block, all pairs of hashes that differ in at most so many bits, each pair once.

    Exact: of the `max_distance // 2 + 1` pieces that a hash is cut into, one differs in at most one bit when the whole
    differs in at most `max_distance`, and the index looks up each piece as it is and with each bit of it flipped.
    """
    if not 0 <= max_distance <= LARGEST_DISTANCE:
        raise UsageError(
            f"a distance of {max_distance} bits: beyond {LARGEST_DISTANCE} different photographs of one person "
            f"would pass for copies; give 0 to {LARGEST_DISTANCE}"
        )
    num_pieces = max_distance // 2 + 1
    for start in range(0, len(hashes), _INDEXED):
        index = faiss.IndexBinaryMultiHash(BITS, num_pieces, min(BITS // num_pieces, 32))
        index.nflip = 1
        index.add(hashes[start : start + _INDEXED])
        for asked in range(start, len(hashes), _QUERIES):
            ends, distances, found = index.range_search(hashes[asked : asked + _QUERIES], max_distance + 1)
            asking = np.repeat(np.arange(len(ends) - 1), (ends[1:] - ends[:-1]).astype(np.int64))
            first, second = start + found, asked + asking
            once = first < second
            yield Edges(first[once], second[once], distances[once].astype(np.int64))


def nearest_edges(hashes: Hashes, max_distance: int = MAX_DISTANCE) -> Edges:
    """Return the fewest and closest pairs that connect all hashes which chains of close pairs connect.

    A group of n copies gives n - 1 pairs, not n(n - 1) / 2, and memory holds about a million pairs beyond those.
    """
    _, rows, place = np.unique(hashes.view(f"S{BITS // 8}").ravel(), return_index=True, return_inverse=True)
    repeats = np.flatnonzero(rows[place] != np.arange(len(hashes)))
    equal = Edges(rows[place[repeats]], repeats, np.zeros(len(repeats), np.int64))
    kept = [Edges(*np.empty((3, 0), np.int64))]
    for block in close_pairs(hashes[rows], max_distance):
        kept.append(block)
        if sum(map(len, kept[1:])) > _PENDING:
            kept = [_spanning_forest(Edges.joined(kept), len(rows))]
    forest = _spanning_forest(Edges.joined(kept), len(rows))
    return Edges.joined([equal, Edges(rows[forest.first], rows[forest.second], forest.distance)])


def _spanning_forest(edges: Edges, num_nodes: int) -> Edges:
    graph = coo_array((edges.distance, (edges.first, edges.second)), shape=(num_nodes, num_nodes))
    tree = minimum_spanning_tree(graph.tocsr()).tocoo()
    return Edges(tree.row, tree.col, tree.data.astype(np.int64))
