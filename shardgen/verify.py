"""Does the folder match its manifest?

Every byte is under a hash: the shards and `rejected.csv` under the manifest's, the manifest under its
own. `deep` also makes every shard again from its table and its images, and compares: so tars, indexes,
tables and manifest say the same, and every image still decodes.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from shardgen.images import check
from shardgen.manifest import MANIFEST, REJECTED, FileInfo, Manifest, ShardInfo, hash_file, read_manifest
from shardgen.sample import Sample, content_hash
from shardgen.tar import BLOCK_BYTES, TarWriter
from shardgen.writer import table_schema

_WAY_OUT = "restore it or convert the set again"


def faults(folder: Path, deep: bool = False) -> Iterator[str]:
    """Yield a line for each way in which the set is not what its manifest says.

    Raises `DataError` when the manifest itself cannot be trusted.
    """
    manifest = read_manifest(folder)
    expected = {f"{shard.name}{suffix}": info for shard in manifest.shards for suffix, info in shard.files.items()}
    expected[REJECTED] = manifest.rejected_file
    damaged = {name: fault for name, info in expected.items() if (fault := _file_fault(folder / name, info))}
    yield from (damaged[name] for name in sorted(damaged))
    for stray in sorted({path.name for path in folder.iterdir()} - expected.keys() - {MANIFEST}):
        yield f"{folder / stray}: not in the manifest; remove it"
    if deep:
        whole = [
            shard for shard in manifest.shards if not any(f"{shard.name}{suffix}" in damaged for suffix in shard.files)
        ]
        counted = _Counts()
        wrong = [fault for shard in whole for fault in _shard_faults(folder / shard.name, shard, manifest, counted)]
        yield from wrong
        if not damaged and not wrong:
            yield from _count_faults(folder, manifest, counted)


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


class _Counts:
    """What the shards' tables add up to."""

    def __init__(self) -> None:
        self.samples = 0
        self.identities: set[int] = set()
        self.tags: Counter[tuple[str, str]] = Counter()


def _shard_faults(stem: Path, shard: ShardInfo, manifest: Manifest, counted: _Counts) -> Iterator[str]:
    """Yield the first sample at which the shard is not what its table says, or what its index lacks."""
    tar, index = (stem.with_suffix(suffix).read_bytes() for suffix in (".tar", ".idx"))
    made = io.BytesIO()
    writer = TarWriter(made)
    try:
        table = pq.read_table(stem.with_suffix(".parquet"))
        if set(table.schema) != set(table_schema(list(manifest.axes))):
            raise ValueError("its table has other columns than the manifest's tag axes ask for")
        for row in table.to_pylist():
            start = made.tell()
            _remake(row, start, tar, manifest, writer)
            if tar[start : made.tell()] != made.getbuffer()[start:]:
                raise ValueError(f"sample {row['key']}: tar and table differ")
            counted.samples += 1
            counted.identities.add(row["identity"])
            counted.tags.update((axis, values[row[axis]]) for axis, values in manifest.axes.items())
    except (ValueError, IndexError, OSError) as error:
        yield f"{stem}: {' '.join(str(error).split())}; {_WAY_OUT}"
        return
    if writer.finish() != index or made.getvalue() != tar or len(table) != shard.num_samples:
        yield f"{stem}: tar, index and manifest list different samples; {_WAY_OUT}"


def _remake(row: Mapping[str, Any], start: int, tar: bytes, manifest: Manifest, writer: TarWriter) -> None:
    """Write a table row's sample again; raise `ValueError` where the row contradicts its image or the manifest."""
    image = tar[row["offset"] : row["offset"] + row["size"]]
    info = check(image)
    sample = Sample(
        key=row["key"],
        image=image,
        identity=manifest.identities[row["identity"]],
        dataset=manifest.name,
        origin=manifest.origin,
        tags={axis: values[row[axis]] for axis, values in manifest.axes.items()},
        attributes={"source": row["source"]},
    )
    found = (row["offset"], row["width"], row["height"], row["content_hash"], row["dataset"], row["origin"])
    due = (start + BLOCK_BYTES, info.width, info.height, content_hash(image), sample.dataset, sample.origin)
    if found != due:
        raise ValueError(f"sample {row['key']}: the table says {found}, image and manifest {due}")
    writer.add_sample(sample.members(info.extension))


def _count_faults(folder: Path, manifest: Manifest, counted: _Counts) -> Iterator[str]:
    with (folder / REJECTED).open(newline="", encoding="utf-8") as stream:
        num_rejected = sum(1 for _ in csv.reader(stream)) - 1
    tags = {axis: {value: counted.tags[axis, value] for value in values} for axis, values in manifest.axes.items()}
    for name, said, found in (
        ("num_samples", manifest.num_samples, counted.samples),
        ("num_identities", manifest.num_identities, len(counted.identities)),
        ("num_rejected", manifest.num_rejected, num_rejected),
        ("num_read", manifest.num_read, counted.samples + num_rejected),
        ("counts", manifest.counts, tags),
    ):
        if said != found:
            yield f"{folder / MANIFEST}: {name} is {said}, counted were {found}; {_WAY_OUT}"
