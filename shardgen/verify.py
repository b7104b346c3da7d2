"""Does the folder match its manifest?

Every byte is under a hash: the shards and `rejected.csv` under the manifest's, the manifest under its
own. `deep` also makes every shard again from its table and its images, and compares: so tars, indexes,
tables and manifest say the same, and every image still decodes.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from shardgen.counts import Counted
from shardgen.errors import DataError
from shardgen.images import MAX_PIXELS, check
from shardgen.manifest import (
    MANIFEST,
    REJECTED,
    FileInfo,
    Manifest,
    ShardInfo,
    hash_file,
    read_manifest,
    revision_name,
)
from shardgen.sample import Sample, content_hash
from shardgen.tar import BLOCK_BYTES, TarWriter
from shardgen.writer import table_schema

_WAY_OUT = "restore it or convert the set again"


def faults(folder: Path, deep: bool = False) -> Iterator[str]:
    """Yield a line for each way in which the set is not what its manifest says, in any of its revisions.

    Raises `DataError` when the newest manifest itself cannot be trusted.
    """
    newest = read_manifest(folder)
    damaged: dict[str, str] = {}
    revisions = [*_earlier(folder, newest, damaged), newest]
    expected = {
        f"{shard.name}{suffix}": info
        for manifest in revisions
        for shard in manifest.shards
        for suffix, info in shard.files.items()
    }
    expected |= {REJECTED: newest.rejected_file}
    for name, info in expected.items():
        if fault := _file_fault(folder / name, info):
            damaged[name] = fault
    yield from (damaged[name] for name in sorted(damaged))
    manifests = {MANIFEST, *map(revision_name, range(1, newest.revision))}
    for stray in sorted({path.name for path in folder.iterdir()} - expected.keys() - manifests):
        yield f"{folder / stray}: not in the manifest; remove it"
    if deep and revisions[0].revision == 1:
        yield from _deep_faults(folder, revisions, damaged)


def _earlier(folder: Path, newest: Manifest, damaged: dict[str, str]) -> Iterator[Manifest]:
    """Yield the manifests before the newest; note those that cannot be trusted."""
    for revision in range(1, newest.revision):
        name = revision_name(revision)
        try:
            yield read_manifest(folder, name)
        except DataError as error:
            damaged[name] = str(error)


def _deep_faults(folder: Path, revisions: Sequence[Manifest], damaged: Mapping[str, str]) -> Iterator[str]:
    first = revisions[0]
    counted = Counted(len(first.identities), first.axes)
    whole = [shard for shard in first.shards if not any(f"{shard.name}{suffix}" in damaged for suffix in shard.files)]
    wrong = [fault for shard in whole for fault in _shard_faults(folder, shard, first, counted)]
    yield from wrong
    if damaged or wrong:
        return
    yield from _count_faults(folder, first, counted)
    for manifest in revisions[1:]:
        yield from _revision_faults(folder, first, manifest)


def _revision_faults(folder: Path, first: Manifest, manifest: Manifest) -> Iterator[str]:
    """Yield where a later revision is not the first one with other tags."""
    columns = table_schema([]).names
    counted = Counted(len(manifest.identities), manifest.axes)
    for shard, original in zip(manifest.shards, first.shards, strict=False):
        table = pq.read_table(folder / shard.table)
        same = set(table.schema) == set(table_schema(list(manifest.axes)))
        if not same or table.select(columns) != pq.read_table(folder / original.table, columns=columns):
            yield f"{folder / shard.table}: says something else than the set's first table beside its tags; {_WAY_OUT}"
            return
        try:
            counted.add(table)
        except IndexError:
            yield f"{folder / shard.table}: holds a tag that the manifest has no value for; {_WAY_OUT}"
            return
    named = [shard.name for shard in manifest.shards] == [shard.name for shard in first.shards]
    if not named or manifest.identities != first.identities or manifest.counts != counted.counts():
        yield f"{folder}: revision {manifest.revision} contradicts the first one or its own files; {_WAY_OUT}"


def _file_fault(path: Path, expected: FileInfo) -> str | None:
    try:
        found = hash_file(path)
    except OSError as error:
        return f"{path}: {error.strerror}; {_WAY_OUT}"
    if found.bytes != expected.bytes:
        return f"{path}: {found.bytes} bytes, the manifest says {expected.bytes}; {_WAY_OUT}"
    if found.sha256 != expected.sha256:
        return f"{path}: its bytes changed (SHA-256 differs from the manifest's); {_WAY_OUT}"
    return None


def _shard_faults(folder: Path, shard: ShardInfo, manifest: Manifest, counted: Counted) -> Iterator[str]:
    """Yield the first sample at which the shard is not what its table says, or what its index lacks."""
    stem = folder / shard.name
    tar, index = (stem.with_suffix(suffix).read_bytes() for suffix in (".tar", ".idx"))
    made = io.BytesIO()
    writer = TarWriter(made)
    try:
        table = pq.read_table(folder / shard.table)
        if set(table.schema) != set(table_schema(list(manifest.axes))):
            raise ValueError("its table has other columns than the manifest's tag axes ask for")
        for row in table.to_pylist():
            start = made.tell()
            _remake(row, start, tar, manifest, writer)
            writer.flush()
            if tar[start : made.tell()] != made.getbuffer()[start:]:
                raise ValueError(f"sample {row['key']}: tar and table differ")
        counted.add(table)
    except (ValueError, IndexError, OSError) as error:
        yield f"{stem}: {' '.join(str(error).split())}; {_WAY_OUT}"
        return
    if writer.finish() != index or made.getvalue() != tar or len(table) != shard.num_samples:
        yield f"{stem}: tar, index and manifest list different samples; {_WAY_OUT}"


def _remake(row: Mapping[str, Any], start: int, tar: bytes, manifest: Manifest, writer: TarWriter) -> None:
    """Write a table row's sample again; raise `ValueError` where the row contradicts its image or the manifest."""
    image = tar[row["offset"] : row["offset"] + row["size"]]
    info = check(image, int(manifest.job.get("max_pixels", MAX_PIXELS)))
    looked = (row["width"], row["height"]) != (0, 0) or manifest.job.get("check") != "none"
    width, height = (info.width, info.height) if looked else (0, 0)
    sample = Sample(
        key=row["key"],
        identity=manifest.identities[row["identity"]],
        dataset=manifest.name,
        origin=manifest.origin,
        tags={axis: values[row[axis]] for axis, values in manifest.axes.items()},
        attributes={"source": row["source"]},
    )
    found = (row["offset"], row["width"], row["height"], row["content_hash"], row["dataset"], row["origin"])
    due = (start + BLOCK_BYTES, width, height, content_hash(image), sample.dataset, sample.origin)
    if found != due:
        raise ValueError(f"sample {row['key']}: the table says {found}, image and manifest {due}")
    writer.add_samples([(sample.key, info.extension, image, sample.json_member())])


def _count_faults(folder: Path, manifest: Manifest, counted: Counted) -> Iterator[str]:
    with (folder / REJECTED).open(newline="", encoding="utf-8") as stream:
        num_rejected = sum(1 for _ in csv.reader(stream)) - 1
    for name, said, found in (
        ("num_samples", manifest.num_samples, counted.num_samples()),
        ("num_identities", manifest.num_identities, counted.num_identities()),
        ("num_rejected", manifest.num_rejected, num_rejected),
        ("num_read", manifest.num_read, counted.num_samples() + num_rejected),
        ("counts", manifest.counts, counted.counts()),
        ("order", manifest.order, manifest.order and counted.order()),
    ):
        if said != found:
            yield f"{folder / MANIFEST}: {name} is {said}, counted were {found}; {_WAY_OUT}"
