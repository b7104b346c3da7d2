"""Shard sets of any size in minutes and without images: real manifests and tables, tars that are nothing but a hole.

As a conversion leaves them: records sorted by identity, shuffled, 10,000 a shard.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shardgen.config import Origin
from shardgen.manifest import FileInfo, Manifest, ShardInfo, write_manifest
from shardgen.tags import UNKNOWN
from shardgen.tar import BLOCK_BYTES, END_OF_ARCHIVE
from shardgen.writer import table_bytes, table_schema

_SHARD_SAMPLES = 10_000
_PRIME = 982_451_653
"""Multiples of it, modulo a number of records, are those records shuffled."""
_JSON_BYTES = 300
_NOT_HASHED = "0" * 64
_AXES = {
    "ethnicity": (UNKNOWN, "African", "Asian", "Caucasian", "Indian"),
    "gender": (UNKNOWN, "Female", "Male"),
}
_PARTS = {"ethnicity": (0.02, 0.07, 0.1, 0.75, 0.06), "gender": (0.02, 0.41, 0.57)}
"""How unbalanced sets from the web are."""


@dataclass(frozen=True)
class SimulatedSet:
    """A shard set to be simulated."""

    name: str
    origin: Origin
    num_samples: int
    num_identities: int

    def shard_sizes(self) -> list[int]:
        """Return the number of samples of each shard."""
        return [min(_SHARD_SAMPLES, self.num_samples - start) for start in range(0, self.num_samples, _SHARD_SAMPLES)]


def simulate(folder: Path, sets: Sequence[SimulatedSet]) -> None:
    """Write the sets, each to the folder of its name."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for one in sets:
            out = folder / one.name
            out.mkdir(parents=True)
            sizes = one.shard_sizes()
            shards = pool.map(partial(_write_shard, out, one), range(len(sizes)), sizes, chunksize=8)
            write_manifest(out, _manifest(one, list(shards)))


def _write_shard(folder: Path, one: SimulatedSet, number: int, num_samples: int) -> ShardInfo:
    table, tar_bytes = _table(one, number, num_samples)
    content = table_bytes(table)
    name = f"{number:06d}"
    (folder / f"{name}.parquet").write_bytes(content)
    with (folder / f"{name}.tar").open("wb") as tar:
        tar.truncate(tar_bytes)
    files = {
        ".tar": FileInfo(bytes=tar_bytes, sha256=_NOT_HASHED),
        ".parquet": FileInfo(bytes=len(content), sha256=hashlib.sha256(content).hexdigest()),
    }
    return ShardInfo(name=name, num_samples=num_samples, files=files)


def _table(one: SimulatedSet, shard: int, num_samples: int) -> tuple[pa.Table, int]:
    """Return a shard's table, and the size of its tar: as if records sorted by identity had been shuffled."""
    first = shard * _SHARD_SAMPLES
    records = np.arange(first, first + num_samples) * _PRIME % one.num_samples
    identities = ((records / one.num_samples) ** 1.25 * one.num_identities).astype(
        np.int32
    )  # some have many more images
    sizes = np.random.default_rng(first).normal(6_900, 1_500, num_samples).clip(1_000).astype(np.int32)
    num_blocks = 3 + -(-sizes // BLOCK_BYTES)  # with two headers and the JSON
    ends = np.cumsum(num_blocks, dtype=np.int64) * BLOCK_BYTES
    keys = _hexadecimal(records)
    columns = {
        "key": _texts(keys, pa.string()),
        "offset": ends - (num_blocks - 1) * BLOCK_BYTES,
        "size": sizes,
        "identity": identities,
        "dataset": [one.name] * num_samples,
        "origin": [one.origin] * num_samples,
        **{axis: _tags(one, axis)[identities] for axis in _AXES},
        "width": np.full(num_samples, 112),
        "height": np.full(num_samples, 112),
        "content_hash": _texts(np.repeat(keys, 2, axis=1), pa.binary()).cast(pa.binary(16)),
        "source": _texts(keys, pa.string()),
    }
    schema = table_schema(list(_AXES))
    arrays = [pa.array(columns[one.name], one.type) for one in schema]
    return pa.table(arrays, schema=schema), int(ends[-1]) + len(END_OF_ARCHIVE)


def _hexadecimal(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return `[numbers, 8]` ASCII digits: the keys of records."""
    values = numbers.astype(">u4").view(np.uint8).reshape(-1, 4)
    nibbles = np.stack([values >> 4, values & 15], axis=2).reshape(-1, 8)
    return np.frombuffer(b"0123456789abcdef", np.uint8)[nibbles]


def _texts(letters: npt.NDArray[np.uint8], kind: pa.DataType) -> pa.Array:
    """Return `[texts, letters]` as an array of texts, without a Python object for each."""
    ends = np.arange(len(letters) + 1, dtype=np.int32) * letters.shape[1]
    return pa.Array.from_buffers(kind, len(letters), [None, pa.py_buffer(ends), pa.py_buffer(letters.tobytes())])


@cache
def _tags(one: SimulatedSet, axis: str) -> npt.NDArray[np.int16]:
    """Return the tag of each identity."""
    draws = np.random.default_rng(len(axis)).choice(len(_AXES[axis]), one.num_identities, p=_PARTS[axis])
    return draws.astype(np.int16)


def _manifest(one: SimulatedSet, shards: Sequence[ShardInfo]) -> Manifest:
    return Manifest(
        name=one.name,
        origin=one.origin,
        num_read=one.num_samples,
        num_samples=one.num_samples,
        num_rejected=0,
        rejected_reasons={},
        rejected_file=FileInfo(bytes=0, sha256=_NOT_HASHED),
        axes=_AXES,
        counts={},
        identities=[f"{number:07d}" for number in range(one.num_identities)],
        num_identities=one.num_identities,
        shards=shards,
        job={},
    )


def write_indices(folder: Path, num_shards: int) -> int:
    """Write the index of a simulated set's first shards, as `wds2idx` would; return their number of samples."""
    num_samples = 0
    for table in sorted(folder.glob("*.parquet"))[:num_shards]:
        rows = pq.read_table(table, columns=["key", "offset", "size"])
        num_samples += len(rows)
        lines = [
            f"jpg {start} {size} {key}.jpg json {_json_start(start, size)} {_JSON_BYTES} {key}.json"
            for key, start, size in zip(*(column.to_pylist() for column in rows.columns), strict=True)
        ]
        table.with_suffix(".idx").write_text("\n".join([f"v1.2 {len(rows)}", *lines, ""]))
    return num_samples


def _json_start(image_start: int, image_bytes: int) -> int:
    return image_start + image_bytes + -image_bytes % BLOCK_BYTES + BLOCK_BYTES
