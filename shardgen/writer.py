"""One shard: its tar, index and table, written to a folder that nobody reads yet.

The last file, `<number>.json`, says that the shard is whole: it holds the hashes of the other three and
of the job that asked for them. Tables are kept as columns and the JSON of an identity is made once, since
what a record costs beside its image decides how fast a million of them are.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
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
from shardgen.sample import content_hash, fixed_fields, json_member, sample_key
from shardgen.sources import Source
from shardgen.tags import Tags
from shardgen.tar import TarWriter


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
    rows = _Rows([], [], [], [])
    rejections: list[Rejection] = []
    with writing_durably(stem.with_suffix(".tar"), sync_renaming=False) as stream:
        hashed = _HashingStream(stream)
        tar = TarWriter(hashed)
        for members in _samples(job, rows, rejections):
            rows.offsets.append(tar.add_sample(members))
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
        edited=dict(Counter(edit for one in rows.images for edit in one[3])),
    )
    write_durably(stem.with_suffix(".json"), record.model_dump_json().encode())
    return record


@dataclass(frozen=True, slots=True)
class _Rows:
    """The columns of the table that grow with each sample."""

    positions: list[int]
    names: list[str]
    images: list[tuple[int, int, int, tuple[str, ...], bytes]]
    """Bytes, width, height, edits, content hash."""
    offsets: list[int]


def _samples(
    job: ShardJob, rows: _Rows, rejections: list[Rejection]
) -> Iterator[tuple[tuple[str, bytes], tuple[str, bytes]]]:
    """Yield the two members of each sample, noting its row; note what is rejected."""
    fixed = _fixed_fields(job)
    for position, (record, name) in enumerate(zip(job.records.tolist(), job.source.names(), strict=True)):
        key = sample_key(record)
        try:
            image = _prepared(job, position)
        except Unreadable as error:
            rejections.append(Rejection(key=key, source=name, reason=str(error)))
            continue
        rows.positions.append(position)
        rows.names.append(name)
        rows.images.append((len(image.data), image.width, image.height, image.edits, content_hash(image.data)))
        fields = json_member({"source": name}, fixed(position))
        yield (f"{key}.{image.extension}", image.data), (f"{key}.json", fields)


def _prepared(job: ShardJob, position: int) -> Prepared:
    data = job.source.read(position)
    if job.landmarks is None:
        return images.prepare(data, job.images)
    landmarks = job.landmarks[position]
    if np.isnan(landmarks).any():
        raise Unreadable("no landmarks: the table has none for it, or not all five")
    return images.prepare(data, job.images, landmarks)


def _fixed_fields(job: ShardJob) -> Callable[[int], str]:
    """Return what gives a record's part of the JSON that its identity and tags decide."""

    @lru_cache(1 << 14)
    def made(identity: str, codes: bytes) -> str:
        numbers = np.frombuffer(codes, np.int16).tolist()
        tags = {axis: values[code] for (axis, values), code in zip(job.tags.axes.items(), numbers, strict=True)}
        return fixed_fields(identity, job.dataset, job.origin, tags)

    return lambda position: made(job.identities[position], job.tags.codes[position].tobytes())


def _table(job: ShardJob, rows: _Rows) -> pa.Table:
    positions, count = np.array(rows.positions, np.int64), len(rows.positions)
    sizes, widths, heights, _, hashes = zip(*rows.images, strict=True) if rows.images else ((),) * 5
    codes = job.tags.codes[positions]
    columns = [
        [sample_key(record) for record in job.records[positions].tolist()],
        rows.offsets,
        sizes,
        job.source.labels[positions],
        [job.dataset] * count,
        [job.origin] * count,
        *codes.T,
        widths,
        heights,
        hashes,
        rows.names,
    ]
    schema = table_schema(list(job.tags.axes))
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def table_bytes(table: pa.Table) -> bytes:
    """Return a shard table's parquet file."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
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
