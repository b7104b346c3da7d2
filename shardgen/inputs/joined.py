"""Several inputs as one: their records one after another.

The same identity name in two inputs is two people, since "0" is somebody else in every set, unless the
inputs are said to share their names.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shardgen.errors import DataError
from shardgen.images import Unreadable
from shardgen.inputs.tagged import unite
from shardgen.sources import NO_IDENTITY, Records, Source, number_identities

_log = logging.getLogger("facemix.shard")


@dataclass(frozen=True, kw_only=True, eq=False)
class JoinedSource(Source):
    """Records of several inputs, those of one input in its own order."""

    columns = ("numbers",)

    inputs: Sequence[tuple[str, Source]]
    numbers: npt.NDArray[np.int32]
    """Which input each record is of."""

    def names(self) -> Iterator[str]:
        """Yield the names, each below its input's."""
        names = [source.names() for _, source in self.inputs]
        return (f"{self.inputs[number][0]}/{next(names[number])}" for number in self.numbers.tolist())

    def image(self, record: int) -> bytes:
        """Return the image from its input."""
        return self.inputs[int(self.numbers[record])][1].image(int(self._rows[record]))

    def read_all(self) -> Iterator[bytes | Unreadable]:
        """Yield what the inputs do; what is wrong with a record is said here."""
        found = [source.read_all() for _, source in self.inputs]
        for record, (number, label) in enumerate(zip(self.numbers.tolist(), self.labels.tolist(), strict=True)):
            image = next(found[number])
            yield self.attempt(record) if isinstance(image, Unreadable) or label == NO_IDENTITY else image

    @cached_property
    def _rows(self) -> Records:
        """Each record's position in its input."""
        return _ranks(self.numbers)

    def files(self) -> Iterator[Path]:
        """Yield the files of all inputs."""
        return (path for _, source in self.inputs for path in source.files())

    def part(self, records: Records, **changes: Any) -> Source:
        """Return some of the records, with just the inputs they are of."""
        used, numbers = np.unique(self.numbers[records], return_inverse=True)
        rows = self._rows[records]
        inputs = [
            (self.inputs[number][0], self.inputs[number][1].part(rows[numbers == position]))
            for position, number in enumerate(used)
        ]
        return super().part(records, inputs=inputs, numbers=numbers.astype(np.int32), **changes)

    def fingerprint(self) -> str:
        """Hash the inputs' own."""
        inner = [f"{name}\0{source.fingerprint()}" for name, source in self.inputs]
        return hashlib.sha256("\n".join([super().fingerprint(), *inner]).encode()).hexdigest()


def _ranks(numbers: npt.NDArray[np.int32]) -> Records:
    """Return for each entry how many of the same number come before it."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    ranks = np.empty(len(numbers), np.int64)
    ranks[order] = np.arange(len(numbers)) - np.searchsorted(ordered, ordered)
    return ranks


def join(inputs: Sequence[tuple[str, Source]], identities: Literal["apart", "joined"] = "apart") -> Source:
    """Return named inputs as one source; a single input stays as it is.

    Records are called `<input>/<name>`. An identity name found in several inputs becomes
    `<input>/<identity>` in each, unless `identities` is "joined": then it is one person.
    """
    if len(inputs) == 1:
        return inputs[0][1]
    named = list(zip(_unique([name for name, _ in inputs]), (source for _, source in inputs), strict=True))
    people, numbers = number_identities(name for names in _names_of_people(named, identities) for name in names)
    ends = np.cumsum([len(source.identities) for _, source in named])
    if identities == "apart" and len(people) < ends[-1]:
        raise DataError("an identity is called like another with its input's name in front; rename one of the inputs")
    numbers = np.append(numbers, np.int32(NO_IDENTITY))  # where label -1 leads to
    starts = ends - [len(source.identities) for _, source in named]
    labels = [
        numbers[np.where(source.labels < 0, NO_IDENTITY, source.labels + start)]
        for (_, source), start in zip(named, starts.tolist(), strict=True)
    ]
    return JoinedSource(
        identities=people,
        labels=np.concatenate(labels),
        tags=unite([(source.tags, len(source)) for _, source in named]),
        ignored=[f"{name}/{file}" for name, source in named for file in source.ignored],
        no_identity="its input does not say whose it is",
        inputs=named,
        numbers=np.repeat(np.arange(len(named), dtype=np.int32), [len(source) for _, source in named]),
    )


def _names_of_people(
    named: Sequence[tuple[str, Source]], identities: Literal["apart", "joined"]
) -> Iterator[Iterator[str]]:
    """Yield each input's identity names, those that others have too with the input's in front."""
    counts = Counter(name for _, source in named for name in source.identities)
    shared = {name for name, count in counts.items() if count > 1}
    if shared:
        example = min(shared)
        fate = f"kept apart, as {named[0][0]}/{example}" if identities == "apart" else "taken as one person"
        _log.info("%d identity names are in several inputs, such as %s: %s", len(shared), example, fate)
    if identities == "joined":
        shared = set()
    for prefix, source in named:
        yield (f"{prefix}/{name}" if name in shared else name for name in source.identities)


def _unique(names: Sequence[str]) -> list[str]:
    """Return the names, with a number behind each that was there before."""
    unique: list[str] = []
    for name in names:
        tried, number = name, 1
        while tried in unique:
            number += 1
            tried = f"{name}-{number}"
        unique.append(tried)
    return unique
