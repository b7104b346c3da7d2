"""Tags of a finished set, added or replaced: a new revision beside the old one, no tar touched.

New tables and the old manifest's copy come first, the new `manifest.json` last: whenever this stops, the
set is whole at one revision or the other, and doing it again ends with the same bytes.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from shardgen.files import ASIDE, locked, write_durably
from shardgen.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    FileInfo,
    Manifest,
    ShardInfo,
    read_manifest,
    revision_name,
    write_manifest,
)
from shardgen.shardset import ShardSet
from shardgen.tags import Codes, Records, Tags, combine
from shardgen.writer import table_bytes

_log = logging.getLogger("facemix.shard")


def records_of(data: ShardSet) -> Records:
    """Return what tags join the samples of a finished set on; they are the same in all its revisions."""
    labels = [table["identity"].to_numpy() for table in data.tables(["identity"])]
    return Records(
        lambda: _texts(data, "source"), data.manifest.identities, np.concatenate(labels), lambda: _texts(data, "key")
    )


def _texts(data: ShardSet, column: str) -> Iterator[str]:
    for table in data.tables([column]):
        yield from table[column].to_pylist()


def retag(folder: Path, sources: Sequence[tuple[str, Tags]]) -> Manifest:
    """Add named sources of tags to a finished set, the first named to be believed, and return its manifest.

    What they know replaces the set's own tags, which are kept where they know nothing. When that changes
    no tag, nothing is written and the manifest is the one that was there. Raises `UsageError` while
    another process tags the set.
    """
    read_manifest(folder)  # says what is wrong with a folder that is no set
    with locked(folder, f"{folder} is being tagged by another process; wait for its end and repeat"):
        data = ShardSet(folder)
        old, records = data.manifest, records_of(data)
        own = (f"revision {old.revision}", _own_tags(data))
        tags, reports = combine([*sources, own] if old.axes else sources, records)
        if _same(tags, combine([own], records)[0]):
            _log.info("%s already has these tags and stays at revision %d", folder, old.revision)
            return old
        for leftover in folder.glob(ASIDE):
            leftover.unlink()
        revision = old.revision + 1
        shards = list(_write_tables(data, tags, revision))
        write_durably(folder / revision_name(old.revision), (folder / MANIFEST).read_bytes())
        changes = {
            "format_version": FORMAT_VERSION,
            "revision": revision,
            "axes": tags.axes,
            "counts": {axis: _counts(values, tags.column(axis)) for axis, values in tags.axes.items()},
            "shards": shards,
            "tag_sources": reports,
            "job": {**old.job, "tags": tags.fingerprint()},
        }
        return write_manifest(folder, old.model_copy(update=changes))


def _own_tags(data: ShardSet) -> Tags:
    axes = data.manifest.axes
    pieces = [
        np.stack([table[axis].to_numpy() for axis in axes], axis=1) if axes else np.zeros((len(table), 0), np.int16)
        for table in data.tables(list(axes))
    ]
    return Tags(axes, np.concatenate(pieces))


def _same(first: Tags, second: Tags) -> bool:
    return first.axes == second.axes and all(
        np.array_equal(first.column(axis), second.column(axis)) for axis in first.axes
    )


def _counts(values: Sequence[str], codes: Codes) -> dict[str, int]:
    return dict(zip(values, np.bincount(codes, minlength=len(values)).tolist(), strict=True))


def _write_tables(data: ShardSet, tags: Tags, revision: int) -> Iterator[ShardInfo]:
    """Write each shard's table with the new tags beside the one it has, and yield what the shard now consists of."""
    suffix = f".r{revision}.parquet"
    start = 0
    for shard, table in zip(data.manifest.shards, data.tables(), strict=True):
        codes = tags.codes[start : start + len(table)]
        start += len(table)
        content = _table_bytes(table.drop_columns(list(data.manifest.axes)), list(tags.axes), codes)
        write_durably(data.folder / f"{shard.name}{suffix}", content)
        kept = {name: info for name, info in shard.files.items() if not name.endswith(".parquet")}
        written = FileInfo(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        yield shard.model_copy(update={"files": {**kept, suffix: written}})


def _table_bytes(untagged: pa.Table, axes: Sequence[str], codes: Codes) -> bytes:
    place = untagged.column_names.index("origin") + 1
    for a, axis in enumerate(axes):
        untagged = untagged.add_column(place + a, axis, pa.array(codes[:, a], pa.int16()))
    return table_bytes(untagged)
