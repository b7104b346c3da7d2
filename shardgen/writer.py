"""One shard: its tar, index and table, written to a folder that nobody reads yet.

The last file, `<number>.json`, says that the shard is whole: it holds the hashes of the other three and
of the job that asked for them. Records are taken in about a megabyte at a time and kept as columns, since
what a record costs beside its image decides how fast a million of them are.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from shardgen import images
from shardgen.files import write_durably, writing_durably
from shardgen.images import ImageOptions, Prepared, Unreadable
from shardgen.manifest import FileInfo, ShardInfo, hash_file
from shardgen.sample import content_hash, json_members, json_text, sample_key
from shardgen.sources import Source
from shardgen.tags import Tags
from shardgen.tar import TarWriter

_BLOCK_BYTES = 1 << 20
_DISTINCT_NUMBERS = ("offset", "size", "identity")
_DISTINCT = frozenset({*_DISTINCT_NUMBERS, "key", "content_hash", "source"})
"""Columns that hardly repeat themselves: as dictionaries they take half again as much space and time."""


@dataclass(frozen=True)
class ShardJob:
    """One unit of work: some records of a source, to be written as shard `number`."""

    number: int
    dataset: str
    origin: str
    records: npt.NDArray[np.int64]
    """Positions in the whole source, from which the keys are made."""
    source: Source
    """The part of the source that holds just these records, in this order."""
    identities: Sequence[str]
    """Each record's identity name."""
    tags: Tags
    images: ImageOptions
    landmarks: npt.NDArray[np.float64] | None
    """`[records, 5, 2]` to align by, NaN where there are none."""
    digest: str
    """Hash of the whole conversion's inputs and options."""


class Rejection(BaseModel):
    """A record that did not get in."""

    model_config = ConfigDict(frozen=True)

    key: str
    source: str
    reason: str


class ShardRecord(BaseModel):
    """What became of a shard's records."""

    model_config = ConfigDict(frozen=True)

    job: str
    """Hash of the conversion that it belongs to."""
    shard: ShardInfo
    rejections: Sequence[Rejection]
    edited: Mapping[str, int]
    """Why images were encoded again -> samples."""


def table_schema(axes: Sequence[str]) -> pa.Schema:
    """Return the schema of every shard table of a set with these tag axes."""
    return pa.schema(
        [
            ("key", pa.string()),
            ("offset", pa.int64()),
            ("size", pa.int32()),
            ("identity", pa.int32()),
            ("dataset", pa.string()),
            ("origin", pa.string()),
            *((axis, pa.int16()) for axis in axes),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("content_hash", pa.binary(16)),
            ("source", pa.string()),
        ]
    )


def finished_shard(folder: Path, number: int, digest: str) -> ShardRecord | None:
    """Return what became of a shard that is already there, each byte as recorded and for this job; else None."""
    stem = folder / f"{number:06d}"
    try:
        record = ShardRecord.model_validate_json(stem.with_suffix(".json").read_bytes())
        whole = all(hash_file(stem.with_suffix(suffix)) == info for suffix, info in record.shard.files.items())
    except (FileNotFoundError, ValidationError):
        return None
    return record if whole and record.job == digest else None


def write_shard(folder: Path, job: ShardJob) -> ShardRecord:
    """Convert the job's records; what cannot become a sample is listed with its reason."""
    stem = folder / f"{job.number:06d}"
    rows = _Rows()
    rejections: list[Rejection] = []
    with writing_durably(stem.with_suffix(".tar"), sync_renaming=False) as stream:
        hashed = _HashingStream(stream)
        tar = TarWriter(hashed)
        for block in _blocks(job, rejections):
            _write_block(job, block, tar, rows)
        index = tar.finish()
    files = {
        ".tar": hashed.info(),
        ".idx": _write(stem.with_suffix(".idx"), index),
        ".parquet": _write(stem.with_suffix(".parquet"), table_bytes(_table(job, rows))),
    }
    record = ShardRecord(
        job=job.digest,
        shard=ShardInfo(name=stem.name, num_samples=len(rows.positions), files=files),
        rejections=rejections,
        edited=dict(rows.edits),
    )
    write_durably(stem.with_suffix(".json"), record.model_dump_json().encode())
    return record


_Taken = tuple[int, str, str, str, str, Prepared]
"""A record that becomes a sample: its position in the job, key, name, identity, tags as JSON, and image."""


def _blocks(job: ShardJob, rejections: list[Rejection]) -> Iterator[Sequence[_Taken]]:
    """Yield the records that become samples, about a megabyte at a time; note the others."""
    block: list[_Taken] = []
    num_bytes = 0
    keys = map(sample_key, job.records.tolist())
    landmarks = repeat(None, len(job.records)) if job.landmarks is None else job.landmarks
    columns = (keys, job.source.names(), job.identities, _tags_texts(job.tags), job.source.read_all(), landmarks)
    for position, (key, name, identity, tags, data, points) in enumerate(zip(*columns, strict=True)):
        try:
            if isinstance(data, Unreadable):
                raise data
            image = images.prepare(data, job.images, points)
        except Unreadable as error:
            rejections.append(Rejection(key=key, source=name, reason=str(error)))
            continue
        block.append((position, key, name, identity, tags, image))
        num_bytes += len(image.data)
        if num_bytes >= _BLOCK_BYTES:
            yield block
            block, num_bytes = [], 0
    if block:
        yield block


def _tags_texts(tags: Tags) -> Iterator[str]:
    """Yield each record's tags as JSON; few of them differ."""

    @lru_cache(1 << 14)
    def text(codes: tuple[int, ...]) -> str:
        return json_text({axis: values[code] for (axis, values), code in zip(tags.axes.items(), codes, strict=True)})

    return map(text, map(tuple, map(np.ndarray.tolist, tags.codes)))


@dataclass(slots=True)
class _Rows:
    """The columns of the table that grow with each block: of numbers, texts and bytes alone, for an object that
    refers to others is one more for the garbage collector to visit, again and again."""

    positions: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    edits: Counter[str] = field(default_factory=Counter)


def _write_block(job: ShardJob, block: Sequence[_Taken], tar: TarWriter, rows: _Rows) -> None:
    positions, keys, names, identities, tags, prepared = zip(*block, strict=True)
    data, extensions, widths, heights, edits = zip(*prepared, strict=True)
    texts = json_members(names, identities, tags, job.dataset, job.origin)
    rows.offsets += tar.add_samples(zip(keys, extensions, data, texts, strict=True))
    rows.positions += positions
    rows.keys += keys
    rows.names += names
    rows.sizes += map(len, data)
    rows.widths += widths
    rows.heights += heights
    rows.hashes += map(content_hash, data)
    rows.edits.update(chain.from_iterable(edits))


def _table(job: ShardJob, rows: _Rows) -> pa.Table:
    positions, count = np.array(rows.positions, np.int64), len(rows.positions)
    columns = [
        rows.keys,
        rows.offsets,
        rows.sizes,
        job.source.labels[positions],
        pa.repeat(job.dataset, count),
        pa.repeat(job.origin, count),
        *job.tags.codes[positions].T,
        rows.widths,
        rows.heights,
        rows.hashes,
        rows.names,
    ]
    schema = table_schema(list(job.tags.axes))
    return pa.table([pa.array(column, one.type) for column, one in zip(columns, schema, strict=True)], schema=schema)


def table_bytes(table: pa.Table) -> bytes:
    """Return a shard table's parquet file."""
    buffer = pa.BufferOutputStream()
    repeated = [name for name in table.column_names if name not in _DISTINCT]
    encodings = dict.fromkeys(_DISTINCT_NUMBERS, "DELTA_BINARY_PACKED")
    pq.write_table(table, buffer, compression="zstd", use_dictionary=repeated, column_encoding=encodings)
    content: bytes = buffer.getvalue().to_pybytes()
    return content


def _write(path: Path, content: bytes) -> FileInfo:
    write_durably(path, content, sync_renaming=False)
    return FileInfo(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


class _HashingStream:
    """Passes bytes on and hashes them, so that a shard is never read again to be vouched for."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def write(self, data: bytes) -> None:
        self._digest.update(data)
        self._num_bytes += len(data)
        self._stream.write(data)

    def info(self) -> FileInfo:
        return FileInfo(bytes=self._num_bytes, sha256=self._digest.hexdigest())
