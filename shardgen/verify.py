"""Does the folder match its manifest?

Every byte is under a hash: the shards and `rejected.csv` under the manifest's, the manifest under its
own. `deep` also asks whether the files agree with each other and every image still decodes.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from shardgen.images import Unreadable, check
from shardgen.manifest import MANIFEST, REJECTED, FileInfo, Manifest, ShardInfo, hash_file, read_manifest
from shardgen.sample import content_hash


def faults(folder: Path, deep: bool = False) -> Iterator[str]:
    """Yield a line for each way in which the set is not what its manifest says.

    Raises `DataError` when the manifest itself cannot be trusted.
    """
    manifest = read_manifest(folder)
    expected = {f"{shard.name}{suffix}": info for shard in manifest.shards for suffix, info in shard.files.items()}
    expected[REJECTED] = manifest.rejected_file
    for name, info in sorted(expected.items()):
        yield from _file_faults(folder / name, info)
    for stray in sorted({path.name for path in folder.iterdir()} - expected.keys() - {MANIFEST}):
        yield f"{folder / stray}: not in the manifest; remove it"
    if deep:
        for shard in manifest.shards:
            yield from _shard_faults(folder, shard, manifest)


def _file_faults(path: Path, expected: FileInfo) -> Iterator[str]:
    try:
        found = hash_file(path)
    except OSError as error:
        yield f"{path}: {error.strerror}; restore it or convert the set again"
        return
    if found.bytes != expected.bytes:
        yield f"{path}: {found.bytes} bytes, the manifest says {expected.bytes}; restore it or convert the set again"
    elif found.sha256 != expected.sha256:
        yield f"{path}: its bytes changed (SHA-256 differs from the manifest's); restore it or convert the set again"


def _shard_faults(folder: Path, shard: ShardInfo, manifest: Manifest) -> Iterator[str]:
    """Read the shard with the standard library's tarfile, and hold table, index and images against it."""
    try:
        rows = pq.read_table(folder / f"{shard.name}.parquet").to_pylist()
        index = (folder / f"{shard.name}.idx").read_text().splitlines()
        with tarfile.open(folder / f"{shard.name}.tar") as tar:
            members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    except (OSError, ValueError, tarfile.TarError) as error:
        yield f"{folder / shard.name}: unreadable, {error}"
        return
    if not len(members) == 2 * len(rows) == 2 * (len(index) - 1) == 2 * shard.num_samples:
        yield f"{folder / shard.name}: {len(members)} members, {len(rows)} rows, {len(index) - 1} index lines"
        return
    pairs = zip(members[::2], members[1::2], strict=True)
    for row, line, ((image, data), (text, fields)) in zip(rows, index[1:], pairs, strict=True):
        where = f"{folder / shard.name}.tar {image.name}"
        entries = " ".join(f"{m.name.partition('.')[2]} {m.offset_data} {m.size} {m.name}" for m in (image, text))
        if line != entries:
            yield f"{where}: the index says {line}"
        if (row["offset"], row["size"], row["content_hash"]) != (
            image.offset_data,
            image.size,
            content_hash(data),
        ):
            yield f"{where}: the table has another offset, size or content"
        if json.loads(fields)["identity"] != manifest.identities[row["identity"]]:
            yield f"{where}: table and JSON name different identities"
        try:
            check(data)
        except Unreadable as error:
            yield f"{where}: {error}"
