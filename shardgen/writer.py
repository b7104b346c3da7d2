"""One shard: its tar, index and table, written to a folder that nobody reads yet.

The last file, `<number>.json`, says that the shard is whole: it holds the hashes of the other three.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from shardgen import images
from shardgen.files import write_durably
from shardgen.images import ImageInfo, Unreadable
from shardgen.manifest import FileInfo, ShardInfo, hash_file
from shardgen.sample import Sample, content_hash, sample_key
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


class Rejection(BaseModel):
    """A record that did not get in."""

    model_config = ConfigDict(frozen=True)

    key: str
    source: str
    reason: str


class ShardRecord(BaseModel):
    """What became of a shard's records."""

    model_config = ConfigDict(frozen=True)

    shard: ShardInfo
    rejections: Sequence[Rejection]


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


def finished_shard(folder: Path, number: int) -> ShardRecord | None:
    """Return what became of a shard that is already there, each byte as recorded; else None."""
    stem = folder / f"{number:06d}"
    try:
        record = ShardRecord.model_validate_json(stem.with_suffix(".json").read_bytes())
        whole = all(hash_file(stem.with_suffix(suffix)) == info for suffix, info in record.shard.files.items())
    except (FileNotFoundError, ValidationError):
        return None
    return record if whole else None


def write_shard(folder: Path, job: ShardJob) -> ShardRecord:
    """Convert the job's records; what cannot become a sample is listed with its reason."""
    stem = folder / f"{job.number:06d}"
    rows: list[dict[str, Any]] = []
    rejections: list[Rejection] = []
    with stem.with_suffix(".tar").open("wb") as stream:
        hashed = _HashingStream(stream)
        tar = TarWriter(hashed)
        for position, name in enumerate(job.source.names()):
            key = sample_key(int(job.records[position]))
            try:
                image = job.source.read(position)
                info = images.check(image)
            except Unreadable as error:
                rejections.append(Rejection(key=key, source=name, reason=str(error)))
                continue
            sample = _sample(job, position, key, name, image)
            rows.append(_row(job, position, sample, info, tar.add_sample(sample.members(info.extension))))
        index = tar.finish()
        stream.flush()
        os.fsync(stream.fileno())
    files = {
        ".tar": hashed.info(),
        ".idx": _write(stem.with_suffix(".idx"), index),
        ".parquet": _write(stem.with_suffix(".parquet"), _table(rows, list(job.tags.axes))),
    }
    record = ShardRecord(shard=ShardInfo(name=stem.name, num_samples=len(rows), files=files), rejections=rejections)
    write_durably(stem.with_suffix(".json"), record.model_dump_json().encode())
    return record


def _sample(job: ShardJob, position: int, key: str, name: str, image: bytes) -> Sample:
    return Sample(
        key=key,
        image=image,
        identity=job.identities[position],
        dataset=job.dataset,
        origin=job.origin,
        tags=job.tags.values_of(position),
        attributes={"source": name},
    )


def _row(job: ShardJob, position: int, sample: Sample, info: ImageInfo, offset: int) -> dict[str, Any]:
    """Return the sample's row of the table; `offset` is where its image starts in the tar."""
    return {
        "key": sample.key,
        "offset": offset,
        "size": len(sample.image),
        "identity": int(job.source.labels[position]),
        "dataset": sample.dataset,
        "origin": sample.origin,
        **dict(zip(job.tags.axes, job.tags.codes[position].tolist(), strict=True)),
        "width": info.width,
        "height": info.height,
        "content_hash": content_hash(sample.image),
        "source": sample.attributes["source"],
    }


def _table(rows: list[dict[str, Any]], axes: Sequence[str]) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, table_schema(axes)), buffer, compression="zstd")
    content: bytes = buffer.getvalue().to_pybytes()
    return content


def _write(path: Path, content: bytes) -> FileInfo:
    write_durably(path, content)
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
