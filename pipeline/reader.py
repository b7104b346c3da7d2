"""Sample ids -> encoded bytes, and what is needed next asked for ahead.

A shard is compared with its manifest when it is first needed, and its file looked at again (2 us) for every batch. A
file that is deleted or exchanged stays open as it was. Bytes are read by calls and not through a memory map, which
costs 2 us more an image: who touches the map of a file that was cut short, or whose disk fails, is killed (SIGBUS).
"""

import mmap
import os
import resource
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pipeline.catalog import BLOCK_BYTES, Catalog, ShardFile
from pipeline.order import Ids
from shardgen.errors import DataError, UsageError
from shardgen.manifest import hash_file

_OTHER_FILES = 256
"""Descriptors left to the rest of the process."""

Version = tuple[int, int, int]
"""Device, inode and time of change of a file."""


@dataclass(frozen=True)
class _Open:
    descriptor: int
    version: Version
    hashed: bool


class ShardReader:
    """Opens each shard when it is first needed, and closes all when it is no more."""

    def __init__(self, catalog: Catalog, check: Literal["size", "hash"] = "size") -> None:
        """Read a catalog's shards; raise `UsageError` when they are more files than a process may open."""
        self._catalog = catalog
        self._hash_first = check == "hash"
        self._shards: dict[int, _Open] = {}
        weakref.finalize(self, _close, self._shards)
        _allow_open_files(len(catalog.shards))

    def read(self, sample_ids: Ids) -> list[bytes]:
        """Return each sample's image file.

        Raises `DataError` when a shard is gone or no longer what its manifest says.
        """
        shards, offsets, sizes = (column.tolist() for column in self._catalog.places(sample_ids))
        for number in set(shards):
            self._look(number, hash_it=False)
        descriptors = [self._shards[number].descriptor for number in shards]
        with suppress(OSError):  # of a shard that is then read again, and named
            contents = list(map(os.pread, descriptors, sizes, offsets))
            if list(map(len, contents)) == sizes:
                return contents
        return [self._bytes(*place) for place in zip(shards, offsets, sizes, strict=True)]

    def _bytes(self, number: int, offset: int, size: int) -> bytes:
        try:
            content = os.pread(self._opened(number).descriptor, size, offset)
        except OSError as error:
            raise _changed(self._catalog.shards[number], f"cannot be read any more ({error.strerror})") from None
        if len(content) < size:
            raise _changed(self._catalog.shards[number], f"ends before byte {offset + size} now")
        return content

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
            os.posix_fadvise(self._opened(shard).descriptor, start, length, os.POSIX_FADV_WILLNEED)

    def verify(self, sample_ids: Ids) -> None:
        """Look at these samples' shards now, and hash those that have not been; raise `DataError` as `read` does."""
        for number in np.unique(self._catalog.places(sample_ids)[0]).tolist():
            self._look(number, hash_it=True)

    def describe(self, sample_id: int) -> str:
        """Return where a sample's image is, for a person: its set, its name in the tar, and the tar."""
        (shard,), (offset,), _ = (column.tolist() for column in self._catalog.places(np.array([sample_id])))
        header = self._bytes(shard, offset - BLOCK_BYTES, BLOCK_BYTES)
        (set_name,) = (name for name in self._catalog.set_starts if sample_id in self._catalog.ids_of(name))
        name = header[:100].rstrip(b"\0").decode()  # of a USTAR header, which is one block
        return f"{name} of set {set_name} in {self._catalog.shards[shard].path}"

    def _opened(self, number: int) -> _Open:
        """Return a shard, as the last look at its file found it."""
        if number not in self._shards:
            self._look(number, hash_it=False)
        return self._shards[number]

    def _look(self, number: int, hash_it: bool) -> None:
        """Look at a shard's file and open it if need be; another file than before has to have the same bytes."""
        shard, opened = self._catalog.shards[number], self._shards.get(number)
        version = _version(shard)
        if opened is not None and opened.version == version:
            if hash_it and not opened.hashed:
                _compare_hash(shard)
                self._shards[number] = replace(opened, hashed=True)
            return
        hash_it |= opened is not None or self._hash_first
        if hash_it:
            _compare_hash(shard)
        if opened is not None:
            os.close(opened.descriptor)
        self._shards[number] = _Open(os.open(shard.path, os.O_RDONLY), version, hash_it)


def _version(shard: ShardFile) -> Version:
    try:
        found = shard.path.stat()
    except OSError as error:
        raise _changed(shard, f"cannot be read any more ({error.strerror})") from None
    if found.st_size != shard.num_bytes:
        raise _changed(shard, f"is {found.st_size} bytes now, its manifest says {shard.num_bytes}")
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _close(shards: Mapping[int, _Open]) -> None:
    for one in shards.values():
        os.close(one.descriptor)


def _compare_hash(shard: ShardFile) -> None:
    found = hash_file(shard.path).sha256
    if found != shard.sha256:
        raise _changed(shard, f"has SHA-256 {found[:12]}... now, its manifest says {shard.sha256[:12]}...")


def _changed(shard: ShardFile, how: str) -> DataError:
    return DataError(f"{shard.path} {how}; put it back as it was, then resume (`facemix verify {shard.path.parent}`)")


def _allow_open_files(number: int) -> None:
    """A large set has more shards than the usual 1024 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = number + _OTHER_FILES
    if needed > hard != resource.RLIM_INFINITY:
        raise UsageError(
            f"{number} shards are more than the {hard} files that a process may open here; "
            "raise `ulimit -Hn`, or convert with more samples in a shard"
        )
    if needed > soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
