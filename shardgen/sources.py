"""Every input as a sized, indexable sequence of records.

A source knows all names and identities before any image is read, in a few bytes a record, so that
wrong tags or a cut file are found in the first minute and not after hours. A part of it, which is what
a worker process gets, knows only its own records. Names are just names: no source opens a path that an
archive or a table made up.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardgen.errors import DataError, UsageError
from shardgen.images import EXTENSIONS, Unreadable
from shardgen.tags import Tags

Labels = npt.NDArray[np.int32]
Records = npt.NDArray[np.int64]
NO_IDENTITY = -1
CHUNK_RECORDS = 1 << 14
IDENTITY_FIELDS = ("identity", "label", "id", "class", "subject")
"""What inputs call the field that says whose a face is; the first that is there counts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Source(ABC):
    """Records of one input."""

    columns: ClassVar[Sequence[str]]
    """The fields that hold a value for each record, beside the labels."""

    identities: Sequence[str]
    """Names of the identities."""
    labels: Labels
    """Each record's position in `identities`, or -1 for none."""
    tags: Tags | None = None
    """What the input itself says about its records."""
    ignored: Sequence[str] = ()
    """Files in the input that are no images and stay out."""
    no_identity: str = ""
    """Why records have none, unless `image` itself says so."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def names(self) -> Iterator[str]:
        """Yield each record's name: a path, or a key in its file."""

    @abstractmethod
    def image(self, record: int) -> bytes:
        """Return one record's image bytes; raise `Unreadable` with the reason."""

    @abstractmethod
    def files(self) -> Iterator[Path]:
        """Yield the files that the records lie in."""

    def read(self, record: int) -> bytes:
        """Return the image bytes of a record that has an identity; raise `Unreadable` with the reason."""
        image = self.image(record)
        if self.labels[record] == NO_IDENTITY:
            raise Unreadable(f"no identity: {self.no_identity}")
        return image

    def attempt(self, record: int) -> bytes | Unreadable:
        """Return what `read` returns or raises."""
        try:
            return self.read(record)
        except Unreadable as error:
            return error

    def read_all(self) -> Iterator[bytes | Unreadable]:
        """Yield what `read` returns or raises for each record in turn."""
        return map(self.attempt, range(len(self)))

    def part(self, records: Records, **changes: Any) -> "Source":
        """Return some of the records, without the identities' names: small enough to send to a process."""
        taken: dict[str, Any] = {name: _take(getattr(self, name), records) for name in self.columns}
        return replace(self, identities=(), labels=self.labels[records], tags=None, ignored=(), **taken | changes)

    def fingerprint(self) -> str:
        """Return a hash that changes with the input's records, names and identities, not with its place."""
        digest = hashlib.sha256("\0".join(self.identities).encode())
        for column in (self.labels, *(getattr(self, name) for name in self.columns)):
            for records in blocks(len(self)):
                digest.update(_bytes(_take(column, records)))
        return digest.hexdigest()

    def stamp(self) -> str:
        """Return a hash of the files' sizes and times: it changes with a file that was written over."""
        digest = hashlib.sha256()
        for path in self.files():
            status = None
            with suppress(FileNotFoundError):
                status = path.stat()
            digest.update(f"{status and (status.st_size, status.st_mtime_ns)}\n".encode())
        return digest.hexdigest()


def blocks(count: int) -> Iterator[Records]:
    """Yield the positions of so many records, some at a time."""
    return (np.arange(start, min(start + CHUNK_RECORDS, count)) for start in range(0, count, CHUNK_RECORDS))


def _take(column: Any, records: Records) -> Any:
    if isinstance(column, pa.Array):
        return column.take(pa.array(records))
    return None if column is None else column[records]


def _bytes(values: pa.Array | npt.NDArray[np.generic] | None) -> bytes:
    if isinstance(values, pa.Array):
        return "\0".join([*values.to_pylist(), ""]).encode()
    return b"" if values is None else values.tobytes()


def each(column: pa.Array) -> Iterator[str]:
    """Yield the texts of a column without holding all of them."""
    return (name for records in blocks(len(column)) for name in _take(column, records).to_pylist())


def text(names: Iterable[str], where: Path) -> pa.Array:
    """Return names as a column, 8 bytes and their text each; raise `DataError` for one that is no UTF-8."""
    try:
        return pa.array(names, pa.large_string())
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {error.object[:200]!r} is no UTF-8 name; rename it") from None


def is_image(name: str) -> bool:
    """Tell by a file's name whether it is an image."""
    return name.rpartition(".")[2].lower() in EXTENSIONS


def folder_identity(path: str) -> str:
    """Return the folder of an image, which is its identity; an image in no folder is one of its own."""
    return path.rpartition("/")[0] or path


def identity_name(value: object) -> str | None:
    """Return the name of an identity that is given as text or as a number from 0; None for anything else."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return str(int(value)) if value >= 0 and value % 1 == 0 else None


def number_identities(owners: Iterable[str | None]) -> tuple[list[str], Labels]:
    """Return the identities' names, as they come, and each record's position among them; -1 for None."""
    numbers: dict[str, int] = {}
    numbered = (NO_IDENTITY if owner is None else numbers.setdefault(owner, len(numbers)) for owner in owners)
    labels = np.fromiter(numbered, np.int32)
    return list(numbers), labels


def identify(source: Source, pattern: str) -> Source:
    """Take each record's identity from its name: the group `identity`, or the first, of a regular expression.

    A record that does not match has no identity. Raises `UsageError` when the pattern has no group,
    `DataError` when it matches no name at all.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"identity pattern {pattern!r} is no regular expression: {error}") from None
    if not compiled.groups:
        raise UsageError(f"identity pattern {pattern!r} has no group; put what names the person in parentheses")
    group = "identity" if "identity" in compiled.groupindex else 1
    matches = map(compiled.search, source.names())
    identities, labels = number_identities(match[group] or None if match else None for match in matches)
    if not identities:
        raise DataError(f"identity pattern {pattern!r} matches none of {len(source)} names, such as {first_of(source)}")
    return replace(source, identities=identities, labels=labels, no_identity="the pattern finds none in its name")


def first_of(source: Source) -> str:
    """Return the first record's name, as an example for a message."""
    return repr(next(source.names(), "none"))
