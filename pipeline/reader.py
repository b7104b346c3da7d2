"""Sample ids -> encoded bytes, through memory maps.

A shard is compared with its manifest when it is first needed, and its file looked at again (2 us) for every batch. A
file that is deleted or exchanged stays mapped as it was; but whoever reads behind the new end of one that was cut short
where it lies is killed (SIGBUS). So use a batch's bytes, or copy them, right after reading it.
"""

import mmap
import resource
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.catalog import BLOCK_BYTES, Catalog, ShardFile
from shardgen.errors import DataError, UsageError
from shardgen.manifest import hash_file

_OTHER_FILES = 256
"""Descriptors left to the rest of the process."""

Encoded = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int64]
Version = tuple[int, int, int]
"""Device, inode and time of change of a file."""


@dataclass(frozen=True)
class _Mapped:
    map: mmap.mmap
    content: Encoded
    version: Version
    hashed: bool


class ShardReader:
    """Maps each shard when it is first needed."""

    def __init__(self, catalog: Catalog, check: Literal["size", "hash"] = "size") -> None:
        """Read a catalog's shards; raise `UsageError` when they are more files than a process may open."""
        self._catalog = catalog
        self._hash_first = check == "hash"
        self._shards: dict[int, _Mapped] = {}
        _allow_open_files(len(catalog.shards))

    def read(self, sample_ids: Ids) -> list[Encoded]:
        """Return each sample's image file as a view of its shard.

        Raises `DataError` when a shard is gone or no longer what its manifest says.
        """
        shards, offsets, sizes = (column.tolist() for column in self._catalog.places(sample_ids))
        for number in set(shards):
            self._look(number, hash_it=False)
        return [
            self._shards[shard].content[offset : offset + size]
            for shard, offset, size in zip(shards, offsets, sizes, strict=True)
        ]

    def read_ahead(self, sample_ids: Ids) -> None:
        """Ask the system to have these samples' pages in memory soon; return at once."""
        shards, offsets, sizes = self._catalog.places(sample_ids)
        order = np.lexsort((offsets, shards))
        shards, starts, ends = shards[order], offsets[order] & -mmap.PAGESIZE, (offsets + sizes)[order]
        apart = (np.diff(shards, prepend=-1) != 0) | (starts > np.append(0, ends[:-1]) + mmap.PAGESIZE)
        firsts = np.flatnonzero(apart)
        lengths = ends[np.append(firsts, len(order))[1:] - 1] - starts[firsts]
        runs = zip(shards[firsts].tolist(), starts[firsts].tolist(), lengths.tolist(), strict=True)
        for shard, start, length in runs:
            self._mapped(shard).map.madvise(mmap.MADV_WILLNEED, start, length)

    def verify(self, sample_ids: Ids) -> None:
        """Look at these samples' shards now, and hash those that have not been; raise `DataError` as `read` does."""
        for number in np.unique(self._catalog.places(sample_ids)[0]).tolist():
            self._look(number, hash_it=True)

    def describe(self, sample_id: int) -> str:
        """Return where a sample's image is, for a person: its set, its name in the tar, and the tar."""
        (shard,), (offset,), _ = (column.tolist() for column in self._catalog.places(np.array([sample_id])))
        header = bytes(self._mapped(shard).content[offset - BLOCK_BYTES : offset])
        (set_name,) = (name for name in self._catalog.set_starts if sample_id in self._catalog.ids_of(name))
        name = header[:100].rstrip(b"\0").decode()  # of a USTAR header, which is one block
        return f"{name} of set {set_name} in {self._catalog.shards[shard].path}"

    def _mapped(self, number: int) -> _Mapped:
        """Return a shard, as the last look at its file found it."""
        if number not in self._shards:
            self._look(number, hash_it=False)
        return self._shards[number]

    def _look(self, number: int, hash_it: bool) -> None:
        """Look at a shard's file and map it if need be; another file than before has to have the same bytes."""
        shard, mapped = self._catalog.shards[number], self._shards.get(number)
        version = _version(shard)
        if mapped is None or mapped.version != version:
            hash_it |= mapped is not None or self._hash_first
            mapped = _map(shard.path, version)
        if hash_it and not mapped.hashed:
            _compare_hash(shard)
        self._shards[number] = replace(mapped, hashed=mapped.hashed or hash_it)


def _version(shard: ShardFile) -> Version:
    try:
        found = shard.path.stat()
    except OSError as error:
        raise _changed(shard, f"cannot be read any more ({error.strerror})") from None
    if found.st_size != shard.num_bytes:
        raise _changed(shard, f"is {found.st_size} bytes now, its manifest says {shard.num_bytes}")
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _map(path: Path, version: Version) -> _Mapped:
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return _Mapped(mapped, np.frombuffer(mapped, np.uint8), version, hashed=False)


def _compare_hash(shard: ShardFile) -> None:
    found = hash_file(shard.path).sha256
    if found != shard.sha256:
        raise _changed(shard, f"has SHA-256 {found[:12]}... now, its manifest says {shard.sha256[:12]}...")


def _changed(shard: ShardFile, how: str) -> DataError:
    return DataError(f"{shard.path} {how}; put it back as it was, then resume (`facemix verify {shard.path.parent}`)")


def _allow_open_files(number: int) -> None:
    """Python's maps keep their files open (until 3.13), and a large set has more shards than the usual 1024 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = number + _OTHER_FILES
    if needed > hard != resource.RLIM_INFINITY:
        raise UsageError(
            f"{number} shards are more than the {hard} files that a process may open here; "
            "raise `ulimit -Hn`, or convert with more samples in a shard"
        )
    if needed > soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
