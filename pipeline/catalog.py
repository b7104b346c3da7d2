"""Manifests -> one columnar table of samples.

A sample id is a row of this table: the sets one after another, each in the order of its shards.
20 bytes a sample and 2 for each tag axis.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from shardgen.errors import DataError
from shardgen.manifest import MANIFEST, Manifest, ShardInfo, read_manifest
from shardgen.tags import UNKNOWN

ORIGIN = "origin"

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Catalog:
    """All samples of some shard sets; arrays have a row per sample."""

    set_starts: Mapping[str, int]
    """Set name -> its first sample id."""
    shard_paths: Sequence[Path]
    identities: Sequence[tuple[str, str]]
    """Label -> (set, identity name); every set has labels of its own."""
    axes: Mapping[str, Sequence[str]]
    """Tag axis -> values over all sets; `origin` is always one; position 0 is unknown."""
    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int32]
    label: npt.NDArray[np.int32]
    tags: Mapping[str, npt.NDArray[np.int16]]
    image_sizes: frozenset[tuple[int, int]]
    """Every (width, height) that occurs, in pixels."""
    digest: str
    """Hash of the manifests: what a saved loader state must agree with."""

    def __len__(self) -> int:
        return len(self.label)

    def ids_of(self, set_name: str) -> range:
        """Return the sample ids of one set."""
        start = self.set_starts[set_name]
        return range(start, min((s for s in self.set_starts.values() if s > start), default=len(self)))


def open_catalog(folders: Mapping[str, Path]) -> Catalog:
    """Read the tables of finished shard sets, set name -> folder.

    Raises `UsageError` or `DataError` when a folder is missing, unfinished, or not what its manifest says.
    """
    manifests = {name: read_manifest(folder) for name, folder in folders.items()}
    axes = _union_of_axes(list(manifests.values()))
    shard_paths: list[Path] = []
    identities: list[tuple[str, str]] = []
    starts: dict[str, int] = {}
    sizes: set[tuple[int, int]] = set()
    parts: list[Columns] = []
    for name, manifest in manifests.items():
        starts[name] = sum(len(part["label"]) for part in parts)
        columns, used = _read_set(folders[name], manifest, axes, sizes)
        columns["shard"] += len(shard_paths)
        columns["label"] += len(identities)
        shard_paths += [folders[name] / f"{shard.name}.tar" for shard in manifest.shards]
        identities += [(name, manifest.identities[number]) for number in used]
        parts.append(columns)
    joined = {column: np.concatenate([part.pop(column) for part in parts]) for column in list(parts[0])}
    seals = b"".join((folder / MANIFEST).read_bytes() for folder in folders.values())
    return Catalog(
        set_starts=starts,
        shard_paths=shard_paths,
        identities=identities,
        axes=axes,
        shard=joined["shard"],
        offset=joined["offset"],
        size=joined["size"],
        label=joined["label"],
        tags={axis: joined[f"tag:{axis}"] for axis in axes},
        image_sizes=frozenset(sizes),
        digest=hashlib.sha256(seals).hexdigest(),
    )


def _union_of_axes(manifests: Sequence[Manifest]) -> dict[str, list[str]]:
    axes: dict[str, list[str]] = {ORIGIN: [UNKNOWN, "authentic", "synthetic"]}
    for manifest in manifests:
        for axis, values in manifest.axes.items():
            known = axes.setdefault(axis, [UNKNOWN])
            known += [value for value in values if value not in set(known)]
    return axes


def _read_set(
    folder: Path, manifest: Manifest, axes: Mapping[str, Sequence[str]], sizes: set[tuple[int, int]]
) -> tuple[Columns, list[int]]:
    """Return a set's columns and the identity number behind each of its labels 0, 1, ...

    Tag codes are those of `axes`; the images' sizes are added to `sizes`.
    """
    pieces = [_read_shard(folder, shard, list(manifest.axes)) for shard in manifest.shards]
    for number, piece in enumerate(pieces):
        piece["shard"] = np.full(len(piece["offset"]), number, np.int32)
        shapes = np.stack([piece.pop("width"), piece.pop("height")], axis=1)
        sizes |= {(width, height) for width, height in np.unique(shapes, axis=0).tolist()}
    columns = {column: np.concatenate([piece.pop(column) for piece in pieces]) for column in list(pieces[0])}
    used, labels = np.unique(columns.pop("identity"), return_inverse=True)
    columns["label"] = labels.astype(np.int32)
    for axis, values in axes.items():
        if axis == ORIGIN:
            columns[f"tag:{axis}"] = np.full(len(labels), values.index(manifest.origin), np.int16)
        elif axis in manifest.axes:
            recode = np.array([values.index(value) for value in manifest.axes[axis]], np.int16)
            columns[f"tag:{axis}"] = recode[columns[f"tag:{axis}"]]
        else:
            columns[f"tag:{axis}"] = np.zeros(len(labels), np.int16)
    return columns, used.tolist()


def _read_shard(folder: Path, shard: ShardInfo, axes: Sequence[str]) -> Columns:
    """Return the columns of a shard's table; tags as `tag:<axis>`, since an axis may have any name."""
    for suffix in (".tar", shard.table.removeprefix(shard.name)):
        path, num_bytes = folder / f"{shard.name}{suffix}", shard.files[suffix].bytes
        if not path.exists() or path.stat().st_size != num_bytes:
            raise DataError(f"{path} is missing or not {num_bytes} bytes; see `facemix verify {folder}`")
    fixed = ("offset", "size", "identity", "width", "height")
    table = pq.read_table(folder / shard.table, columns=[*fixed, *axes])
    columns = {column: table[column].to_numpy() for column in fixed}
    return columns | {f"tag:{axis}": table[axis].to_numpy() for axis in axes}
