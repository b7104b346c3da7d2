"""The same few faces as every kind of input."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardgen.images import Unreadable
from shardgen.recordio import RecordWriter, pack
from shardgen.sources import Source

# Nothing decodes at opening, so these need not be faces.
FACES = {"ann/1.jpg": b"one" * 50, "ann/2.png": b"two", "bob/a.b.jpg": b"three" * 9, "bob/c/4.webp": b"four" * 400}


def contents(source: Source) -> list[tuple[str, str | None, bytes]]:
    """Return (name, identity, image) of every record."""
    records = enumerate(zip(source.names(), source.labels.tolist(), strict=True))
    return [
        (name, source.identities[label] if label >= 0 else None, source.image(record))
        for record, (name, label) in records
    ]


def one_by_one(source: Source) -> list[bytes | str]:
    """Return each record's image, or why there is none."""
    return _outcomes(map(source.attempt, range(len(source))))


def at_once(source: Source) -> list[bytes | str]:
    """Return the same, read as a conversion does."""
    return _outcomes(source.read_all())


def _outcomes(read: Iterable[bytes | Unreadable]) -> list[bytes | str]:
    return [str(one) if isinstance(one, Unreadable) else one for one in read]


def held(files: Mapping[str, bytes]) -> list[tuple[str, str | None, bytes]]:
    """Return what a source of these files holds where folders are identities."""
    return [(name, name.rpartition("/")[0], content) for name, content in files.items()]


def whole(source: Source) -> Source:
    """Return all records as a part."""
    return source.part(np.arange(len(source), dtype=np.int64))


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_zip(path: Path, files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_lmdb(path: Path, values: Mapping[str, Any], **instead: bytes) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    entries = {
        key.encode(): value if isinstance(value, bytes) else msgpack.packb(value) for key, value in values.items()
    }
    entries |= {b"__len__": msgpack.packb(len(values)), b"__keys__": msgpack.packb([key.encode() for key in values])}
    entries |= {f"__{name}__".encode(): value for name, value in instead.items()}
    with lmdb.open(str(path), map_size=1 << 24) as database, database.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key, value)
    return path


def write_parquet(path: Path, columns: Mapping[str, Any], features: Mapping[str, Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(dict(columns))
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=2)
    return path


def images_column(files: Mapping[str, bytes | None]) -> pa.Array:
    """Return Hugging Face's image column."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": content, "path": name} for name, content in files.items()], kind)


def write_recordio(path: Path, files: Mapping[str, bytes]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    with RecordWriter(path / "file") as writer:
        for key, content in enumerate(files.values()):
            writer.write(key, pack([0.0], key, content))
    return path


def with_list(path: Path, files: Mapping[str, bytes]) -> Path:
    write_recordio(path, files)
    (path / "list.txt").write_text("".join(f"{key}\t{name}\n" for key, name in enumerate(files)))
    return path


Write = Callable[[Path, Mapping[str, bytes]], Path]

WRITERS: Mapping[str, Write] = {
    "recordio": with_list,
    "folder": write_folder,
    "zip": lambda path, files: write_zip(path / "faces.zip", files),
    "lmdb": lambda path, files: write_lmdb(
        path, {name: [content, name.rpartition("/")[0]] for name, content in files.items()}
    ),
    "webdataset": lambda path, files: write_tar(path / "000.tar", files),
    "parquet": lambda path, files: write_parquet(
        path / "data" / "train-00000-of-00001.parquet",
        {"image": images_column(files), "identity": [name.rpartition("/")[0] for name in files]},
    ),
}
