"""What an audit works on: the samples of several sets as one column each, and pairs of them as findings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from shardgen.errors import UsageError
from shardgen.shardset import ShardSet

Numbers = npt.NDArray[np.int64]
Finding = Literal["copy", "near copy", "alike"]
_PRINTED = 10


@dataclass(frozen=True)
class Place:
    """A sample, and where it is."""

    set_number: int
    """Position of its set among those audited."""
    set_name: str
    row: int
    """Position in its set."""
    key: str
    identity: str
    source: str

    def columns(self) -> tuple[str, str, str]:
        """Return what a table shows."""
        return f"{self.set_name} {self.key}", self.identity, self.source


@dataclass(frozen=True)
class Pair:
    """Two samples that should not both be there, or should not differ in identity."""

    finding: Finding
    measure: float
    """Bits in which two images' hashes differ or, of two people that are alike, the cosine of their centres."""
    first: Place
    second: Place

    @property
    def degree(self) -> str:
        """The measure, as a person reads it."""
        if self.finding == "copy":
            return "same bytes"
        return f"{self.measure:.0f} bits differ" if self.finding == "near copy" else f"similarity {self.measure:.3f}"

    @property
    def relation(self) -> str:
        """What the two have in common."""
        if self.first.set_number != self.second.set_number:
            return "two sets"
        return "one identity" if self.first.identity == self.second.identity else "two identities"


def table(pairs: Sequence[Pair], num_all: int) -> list[str]:
    """Return the first pairs as aligned lines, and how many there are beyond."""
    rows = [
        (one.relation, one.degree, *(text for end in (one.first, one.second) for text in end.columns()))
        for one in pairs[:_PRINTED]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return lines + ([f"  and {num_all - len(rows)} more"] if num_all > len(rows) else [])


@dataclass(frozen=True)
class Samples:
    """The samples of several sets, one set after the other; a row is a position in all of them."""

    sets: Sequence[ShardSet]
    names: Sequence[str]
    """What to call each set."""
    starts: Numbers
    """`[sets + 1]`: each set's first row, and the number of samples."""
    set_numbers: Numbers
    identities: Numbers
    """Position of each sample's identity in `identity_names`."""
    contents: npt.NDArray[np.bytes_]
    """Content hashes."""

    @property
    def identity_names(self) -> Sequence[str]:
        """The identities of all sets, one set after the other: equal names in two sets are two identities."""
        return [name for one in self.sets for name in one.manifest.identities]

    @cached_property
    def originals(self) -> Numbers:
        """For each sample the first one that has the same bytes, often itself."""
        _, first, content = np.unique(self.contents, return_index=True, return_inverse=True)
        return first[content]

    def places(self, rows: Numbers) -> Mapping[int, Place]:
        """Describe some rows; reads the tables again, since all keys and sources would not fit in memory."""
        wanted, start = np.unique(rows), 0
        found: dict[int, Place] = {}
        for number, one in enumerate(self.sets if len(wanted) else ()):
            for table in one.tables(["key", "identity", "source"]):
                here = wanted[(wanted >= start) & (wanted < start + len(table))]
                for row, fields in zip(here.tolist(), table.take(here - start).to_pylist(), strict=True):
                    fields["identity"] = one.manifest.identities[fields["identity"]]
                    found[row] = Place(number, self.names[number], row - int(self.starts[number]), **fields)
                start += len(table)
        return found

    def pairs(self, finding: Finding, first: Numbers, second: Numbers, measures: npt.NDArray[np.generic]) -> list[Pair]:
        """Describe pairs of rows."""
        places = self.places(np.concatenate([first, second]))
        columns = measures.tolist(), first.tolist(), second.tolist()
        return [
            Pair(finding, measure, places[one], places[other]) for measure, one, other in zip(*columns, strict=True)
        ]


def open_samples(paths: Sequence[Path]) -> Samples:
    """Open the sets to audit; `UsageError` when one is given twice."""
    sets = [ShardSet(path) for path in paths]
    folders = [one.folder.resolve() for one in sets]
    for path, folder in zip(paths, folders, strict=True):
        if folders.count(folder) > 1:
            raise UsageError(f"{path} is given twice: each of its images would be a copy; name every set once")
    names = [one.name for one in sets]
    starts = np.cumsum([0, *map(len, sets)])
    columns = [np.concatenate(column) for column in zip(*(_columns(sets)), strict=True)]
    return Samples(
        sets=sets,
        names=names if len(set(names)) == len(names) else [str(one.folder) for one in sets],
        starts=starts,
        set_numbers=np.repeat(np.arange(len(sets)), np.diff(starts)),
        identities=columns[0],
        contents=columns[1],
    )


def _columns(sets: Sequence[ShardSet]) -> Iterator[tuple[Numbers, npt.NDArray[np.bytes_]]]:
    """Yield identities, numbered over all sets, and content hashes of each shard."""
    start = 0
    for one in sets:
        for table in one.tables(["identity", "content_hash"]):
            hashes = table["content_hash"].combine_chunks()
            contents = np.frombuffer(hashes.buffers()[1], "S16", len(hashes), 16 * hashes.offset)
            yield start + table["identity"].to_numpy().astype(np.int64), contents
        start += len(one.manifest.identities)
