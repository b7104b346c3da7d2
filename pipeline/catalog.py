"""Manifests -> one columnar table of samples.

A sample id is a row of this table: the sets one after another, each in the order of its shards. A row is 12 bytes
and one for each tag axis (two where an axis has over 256 values), since the rest follows from where it stands: the
shard from the shards' first rows, the origin from the set, and an image begins at a whole block of its tar.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.order import Ids
from pipeline.tables import KEY, Columns, TableFile, columns_of_numbers, fill, image_sizes, on_all_cores, read
from shardgen.errors import DataError, UsageError
from shardgen.manifest import Manifest, ShardInfo, read_manifest
from shardgen.tags import UNKNOWN

ORIGIN = "origin"
BLOCK_BYTES = 512
"""Of a tar: what a member holds begins at a multiple of it."""
_PART = 1 << 16

Codes = npt.NDArray[np.int16]
StoredCodes = npt.NDArray[np.uint8] | Codes
Rows = Ids | slice | range
"""Sample ids; a slice or a range where they are consecutive, so that nothing N-sized is made to select them."""


@dataclass(frozen=True)
class ShardFile:
    """A shard's tar, as its manifest vouches for it."""

    path: Path
    num_bytes: int
    sha256: str
    first_id: int
    """Sample id of its first sample."""


class Identities(Sequence[tuple[str, str]]):
    """(set, identity name) of each label, made when asked for: as Python objects, millions would fill the memory."""

    def __init__(self, names: Mapping[str, pa.StringArray]) -> None:
        """Take each set's names, in the order of its labels."""
        self._names = names
        self._starts = np.cumsum([0, *map(len, names.values())]).tolist()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, label: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, label: slice) -> list[tuple[str, str]]: ...
    def __getitem__(self, label: int | slice) -> tuple[str, str] | list[tuple[str, str]]:
        if isinstance(label, slice):
            return [self[one] for one in range(len(self))[label]]
        label = range(len(self))[label]  # counts negative ones from the end, and refuses what is no label
        place = bisect_right(self._starts, label) - 1
        set_name = list(self._names)[place]
        return set_name, self._names[set_name][label - self._starts[place]].as_py()

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for set_name, names in self._names.items():
            yield from zip(repeat(set_name), names.to_pylist())


@dataclass(frozen=True)
class Catalog:
    """All samples of some shard sets; arrays have a row per sample."""

    set_starts: Mapping[str, int]
    """Set name -> its first sample id, in rising order."""
    origins: Mapping[str, str]
    """Set name -> "authentic" or "synthetic"."""
    shards: Sequence[ShardFile]
    identities: Sequence[tuple[str, str]]
    """Label -> (set, identity name); every set has labels of its own, and every label a sample."""
    axes: Mapping[str, Sequence[str]]
    """Tag axis -> values over all sets; `origin` is always one; position 0 is unknown."""
    image_sizes: frozenset[tuple[int, int]]
    """Every (width, height) that occurs, in pixels."""
    digest: str
    """Hash of the manifests: what a saved loader state must agree with."""
    label: npt.NDArray[np.int32]
    block: npt.NDArray[np.uint32]
    """Where the image begins in its tar, in blocks."""
    size: npt.NDArray[np.int32]
    """Bytes of the image file."""
    tags: Mapping[str, StoredCodes]
    """Tag axis other than `origin` -> positions in its values."""
    tables: Mapping[str, Sequence[TableFile]] = field(default_factory=dict)
    """Set name -> the table of each of its shards."""

    def __len__(self) -> int:
        return len(self.label)

    def ids_of(self, set_name: str) -> range:
        """Return the sample ids of one set."""
        bounds = [*self.set_starts.values(), len(self)]
        place = list(self.set_starts).index(set_name)
        return range(bounds[place], bounds[place + 1])

    @cached_property
    def shard_starts(self) -> Ids:
        """`[shards] int64`: the first sample id of each."""
        return np.array([shard.first_id for shard in self.shards], np.int64)

    def places(self, ids: Ids) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Return each sample's position in `shards`, and its image's first byte in that tar and number of bytes."""
        shards = np.searchsorted(self.shard_starts, ids, "right").astype(np.int32) - np.int32(1)
        return shards, self.block[ids].astype(np.int64) * BLOCK_BYTES, self.size[ids]

    def codes(self, axis: str, ids: Rows) -> Codes:
        """Return each sample's position in the values of an axis."""
        if isinstance(ids, range):
            ids = slice(ids.start, ids.stop, ids.step)
        if axis != ORIGIN:
            return self.tags[axis][ids].astype(np.int16)
        of_set = np.array([self.axes[ORIGIN].index(self.origins[name]) for name in self.set_starts], np.int16)
        starts = list(self.set_starts.values())
        if isinstance(ids, slice):
            return np.repeat(of_set, np.diff([*starts, len(self)]))[ids]
        return of_set[np.searchsorted(starts, ids, "right") - 1]

    def columns(self, set_name: str, names: Sequence[str]) -> Columns:
        """Return further columns of a set's tables, a row per sample of the set, read from the files when asked.

        `key` comes as the number that it is in hexadecimal, uint64; others as float64, NaN where there is no number;
        a tag axis as the numbers that its values are. Raises `UsageError` when a column is not there or has no numbers.
        """
        tags = {axis: numbers for axis, values in self.axes.items() if not np.isnan(numbers := _numbers(values)).all()}
        tables, ids = self.tables[set_name], self.ids_of(set_name)
        known = columns_of_numbers(tables[0]) - self.axes.keys() | tags.keys()
        if unknown := [name for name in names if name not in known]:
            there = ", ".join(sorted(known))
            raise UsageError(f"set {set_name} has no column {unknown[0]!r} of numbers; there are: {there}")
        columns = {name: np.empty(len(ids), np.uint64 if name == KEY else np.float64) for name in names}
        for axis in columns.keys() & tags.keys():
            columns[axis][:] = tags[axis][self.codes(axis, ids)]
        from_files = {name: column for name, column in columns.items() if name not in tags}
        if from_files:
            on_all_cores(lambda table: fill(from_files, table.first_id - ids.start, table), tables)
        return columns


def _numbers(values: Sequence[str]) -> npt.NDArray[np.float64]:
    def number(value: str) -> float:
        try:
            return float(value)
        except ValueError:
            return np.nan

    return np.array([number(value) for value in values])


def open_catalog(folders: Mapping[str, Path]) -> Catalog:
    """Read the tables of finished shard sets, set name -> folder.

    Raises `UsageError` or `DataError` when a folder is missing, unfinished, or not what its manifest says.
    """
    manifests, names = _read_manifests(folders)
    axes = _union_of_axes(manifests.values())
    jobs = _lay_out(folders, manifests, names, axes)
    shards = list(chain.from_iterable(jobs.values()))
    rows = _Rows.of(sum(job.shard.num_samples for job in shards), axes)
    sizes = frozenset(chain.from_iterable(on_all_cores(rows.fill, shards)))
    if any(manifest.num_identities < len(names[name]) for name, manifest in manifests.items()):
        names = _number_used(rows.label, names)
    seals = "".join(manifest.seal for manifest in manifests.values())
    return Catalog(
        set_starts={name: of_set[0].first_id for name, of_set in jobs.items()},
        origins={name: manifest.origin for name, manifest in manifests.items()},
        shards=[job.tar for job in shards],
        identities=Identities(names),
        axes=axes,
        image_sizes=sizes,
        digest=hashlib.sha256(seals.encode()).hexdigest(),
        label=rows.label,
        block=rows.block,
        size=rows.size,
        tags=rows.tags,
        tables={name: [job.table for job in of_set] for name, of_set in jobs.items()},
    )


def _read_manifests(folders: Mapping[str, Path]) -> tuple[dict[str, Manifest], dict[str, pa.StringArray]]:
    """Return the sets' manifests without the identities, and these apart: as texts, millions are hundreds of MB."""
    manifests: dict[str, Manifest] = {}
    names: dict[str, pa.StringArray] = {}
    for name, folder in folders.items():
        manifest = read_manifest(folder)
        names[name] = pa.array(manifest.identities, pa.large_string())
        manifests[name] = manifest.model_copy(update={"identities": ()})
    return manifests, names


def _union_of_axes(manifests: Iterable[Manifest]) -> dict[str, list[str]]:
    axes = {ORIGIN: dict.fromkeys([UNKNOWN, "authentic", "synthetic"])}
    for manifest in manifests:
        for axis, values in manifest.axes.items():
            axes.setdefault(axis, {UNKNOWN: None}).update(dict.fromkeys(values))
    return {axis: list(values) for axis, values in axes.items()}


@dataclass(frozen=True)
class _Job:
    """A shard whose table is to be read."""

    folder: Path
    shard: ShardInfo
    first_id: int
    first_identity: int
    """What its identity numbers count from: over all sets, they are told apart."""
    recode: Mapping[str, Codes]
    """Tag axis -> position among the values over all sets of each of its set's values."""

    @property
    def table(self) -> TableFile:
        suffix = self.shard.table.removeprefix(self.shard.name)
        return TableFile(self.folder / self.shard.table, self.shard.files[suffix].sha256, self.first_id)

    @property
    def tar(self) -> ShardFile:
        info = self.shard.files[".tar"]
        return ShardFile(self.folder / f"{self.shard.name}.tar", info.bytes, info.sha256, self.first_id)


def _lay_out(
    folders: Mapping[str, Path],
    manifests: Mapping[str, Manifest],
    names: Mapping[str, pa.StringArray],
    axes: Mapping[str, Sequence[str]],
) -> dict[str, list[_Job]]:
    """Return the shards of each set."""
    position = {axis: {value: code for code, value in enumerate(values)} for axis, values in axes.items()}
    jobs: dict[str, list[_Job]] = {}
    first_id = first_identity = 0
    for name, manifest in manifests.items():
        recode = {
            axis: np.array([position[axis][value] for value in values], np.int16)
            for axis, values in manifest.axes.items()
        }
        starts = np.cumsum([first_id, *(shard.num_samples for shard in manifest.shards)]).tolist()
        jobs[name] = [
            _Job(folders[name], shard, start, first_identity, recode)
            for shard, start in zip(manifest.shards, starts, strict=False)
        ]
        first_id, first_identity = starts[-1], first_identity + len(names[name])
    return jobs


@dataclass(frozen=True)
class _Rows:
    """The columns, filled shard by shard."""

    label: npt.NDArray[np.int32]
    """Numbers of identities, those without a sample counted too, until these are taken out."""
    block: npt.NDArray[np.uint32]
    size: npt.NDArray[np.int32]
    tags: Mapping[str, StoredCodes]

    @classmethod
    def of(cls, num_rows: int, axes: Mapping[str, Sequence[str]]) -> "_Rows":
        """Return empty ones; an axis that a set lacks stays unknown there, and takes no memory until it is read."""
        return cls(
            label=np.empty(num_rows, np.int32),
            block=np.empty(num_rows, np.uint32),
            size=np.empty(num_rows, np.int32),
            tags={axis: _unknown(num_rows, len(values)) for axis, values in axes.items() if axis != ORIGIN},
        )

    def fill(self, job: _Job) -> set[tuple[int, int]]:
        """Read a shard's table into its rows and return the (width, height) of its images."""
        _check_size(job.tar)
        file = job.table.open()
        columns = read(file, ["offset", "size", "identity", *job.recode])
        rows = slice(job.first_id, job.first_id + job.shard.num_samples)
        self.block[rows] = columns["offset"] // BLOCK_BYTES
        self.size[rows] = columns["size"]
        self.label[rows] = columns["identity"] + np.int32(job.first_identity)
        for axis, recode in job.recode.items():
            self.tags[axis][rows] = recode[columns[axis]]
        return image_sizes(file)


def _check_size(tar: ShardFile) -> None:
    if not tar.path.exists() or tar.path.stat().st_size != tar.num_bytes:
        raise DataError(f"{tar.path} is missing or not {tar.num_bytes} bytes; see `facemix verify {tar.path.parent}`")


def _unknown(num_rows: int, num_values: int) -> StoredCodes:
    return np.zeros(num_rows, np.uint8) if num_values <= 256 else np.zeros(num_rows, np.int16)


def _number_used(label: npt.NDArray[np.int32], names: Mapping[str, pa.StringArray]) -> dict[str, pa.StringArray]:
    """Number the identities that have a sample from 0, and return their names."""
    parts = np.array_split(label, len(label) // _PART + 1)
    used = np.zeros(sum(map(len, names.values())), np.bool_)
    for part in parts:
        used[part] = True
    numbers = np.cumsum(used, dtype=np.int32) - np.int32(1)
    for part in parts:
        part[:] = numbers[part]
    masks = np.split(used, np.cumsum([len(one) for one in names.values()])[:-1])
    return {name: one.filter(pa.array(mask)) for (name, one), mask in zip(names.items(), masks, strict=True)}
