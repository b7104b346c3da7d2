"""Parquet tables with encoded images, in Hugging Face's layout.

A record out of the middle of such a table costs the whole row group that it is packed in. So the images
are unpacked once, into a file without a name that goes with the process, and served from there.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardgen.errors import DataError, UsageError
from shardgen.files import Descriptor
from shardgen.inputs.slices import NO_IMAGE, SliceSource, files_of
from shardgen.sources import IDENTITY_FIELDS, Records, Source, identity_name, number_identities, text

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "picture", "face")
_BATCH_ROWS = 256
_log = logging.getLogger("facemix.shard")


@dataclass(frozen=True, kw_only=True, eq=False)
class ParquetSource(SliceSource):
    """Images unpacked from tables; parts can be read as long as the whole source is there."""

    tables: Sequence[Path]
    spool: Descriptor | None
    content: str
    """A hash of the images, which opening the input found."""

    def files(self) -> Iterator[Path]:
        """Yield the tables."""
        return iter(self.tables)

    def part(self, records: Records, **changes: Any) -> Source:
        """Return some of the records, which find their images through this process."""
        return super().part(records, spool=None, **changes)

    def fingerprint(self) -> str:
        """Hash the images too."""
        return hashlib.sha256(f"{super().fingerprint()} {self.content}".encode()).hexdigest()


def open_parquet(path: Path, identity_column: str | None = None, spool_folder: Path | None = None) -> ParquetSource:
    """Read a `.parquet` file, or all below a folder, and unpack the images below `spool_folder`.

    Images are a struct of `bytes` and `path`, or binary. Identities come from `identity_column`, or the
    first of identity, label, id, class and subject; numbers of a Hugging Face ClassLabel become its names.
    Raises `DataError` for a damaged table or one without images, `UsageError` for a column that is not there.
    """
    tables = files_of(path, ".parquet")
    _log.info("%s: unpacking the images of %d tables", path, len(tables))
    try:
        with tempfile.TemporaryFile(dir=spool_folder) as stream:
            spool = Descriptor(os.dup(stream.fileno()))
            rows = _unpack(tables, path, identity_column, stream)
    except OSError as error:
        raise UsageError(
            f"the images of {path} cannot be unpacked to {spool_folder or tempfile.gettempdir()} ({error.strerror}); "
            "name another folder for temporary files"
        ) from None
    identities, labels = number_identities(rows.owners)
    lengths = np.maximum(rows.sizes, 0)
    return ParquetSource(
        identities=identities,
        labels=labels,
        no_identity="its row names none",
        archives=[Path(f"/proc/{os.getpid()}/fd/{spool.number}")],
        paths=pa.concat_arrays(rows.names),
        file_numbers=np.zeros(len(labels), np.int32),
        offsets=np.cumsum(lengths) - lengths,
        sizes=np.array(rows.sizes, np.int64),
        content=rows.content,
        tables=tables,
        spool=spool,
    )


@dataclass
class _Rows:
    """What the tables told, row after row."""

    names: list[pa.Array] = field(default_factory=list)
    owners: list[str | None] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    content: str = ""


def _unpack(tables: Sequence[Path], path: Path, identity_column: str | None, stream: BinaryIO) -> _Rows:
    """Write the images of all rows one after another."""
    rows, digest = _Rows(), hashlib.sha256()
    for table in tables:
        called = table.name if table == path else table.relative_to(path).as_posix()
        for batch in _batches(table, called, identity_column):
            packed = b"".join(image or b"" for image in batch.images)
            digest.update(packed)
            stream.write(packed)
            rows.sizes += [NO_IMAGE if image is None else len(image) for image in batch.images]
            rows.names.append(text(batch.names, table))
            rows.owners += batch.owners
    if not rows.sizes:
        raise DataError(f"{path} has no row; give tables that hold faces")
    rows.content = digest.hexdigest()
    return rows


@dataclass(frozen=True)
class _Batch:
    """Some rows of a table."""

    images: Sequence[bytes | None]
    names: Sequence[str]
    owners: Sequence[str | None]


def _batches(table: Path, called: str, identity_column: str | None) -> Iterator[_Batch]:
    try:
        with pq.ParquetFile(table) as opened:
            schema = opened.schema_arrow
            image, owner = _image_column(table, schema), _identity_column(table, schema, identity_column)
            class_names = _class_names(schema, owner)
            row = 0
            for batch in opened.iter_batches(_BATCH_ROWS, columns=[image] if owner is None else [image, owner]):
                images, paths = _images(batch.column(image))
                labels = [None] * len(images) if owner is None else batch.column(owner).to_pylist()
                names = [name or f"{called}:{row + number}" for number, name in enumerate(paths)]
                yield _Batch(images, names, [_owner(label, class_names) for label in labels])
                row += len(images)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"{table} is no whole parquet table: {str(error).splitlines()[0][:200]}; copy it again"
        ) from None


def _images(column: pa.Array) -> tuple[list[bytes | None], list[str | None]]:
    """Return the images of a column, and what it says they are called."""
    if not pa.types.is_struct(column.type):
        return column.to_pylist(), [None] * len(column)
    fields = dict(
        zip((column.type.field(at).name for at in range(column.type.num_fields)), column.flatten(), strict=True)
    )
    paths = fields.get("path")
    return fields["bytes"].to_pylist(), [None] * len(column) if paths is None else paths.to_pylist()


def _image_column(table: Path, schema: pa.Schema) -> str:
    holding = [field.name for field in schema if _holds_images(field.type)]
    known = [name for name in _IMAGE_COLUMNS if name in holding]
    if known or len(holding) == 1:
        return (known or holding)[0]
    raise DataError(
        f"{table} has {len(holding)} columns of bytes among {', '.join(schema.names)[:200]}; "
        f"one should be called {_IMAGE_COLUMNS[0]}"
    )


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _holds_images(kind.field(at).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _identity_column(table: Path, schema: pa.Schema, wanted: str | None) -> str | None:
    found = wanted or next((name for name in IDENTITY_FIELDS if name in schema.names), None)
    if found is not None and found not in schema.names:
        raise UsageError(f"{table} has no column {found}; it has {', '.join(schema.names)[:200]}")
    return found


def _class_names(schema: pa.Schema, column: str | None) -> Sequence[str]:
    """Return the names that Hugging Face's metadata has for a column's numbers, or none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, TypeError, ValueError):
        return ()


def _owner(label: object, class_names: Sequence[str]) -> str | None:
    if isinstance(label, int) and class_names:
        return class_names[label] if 0 <= label < len(class_names) else None
    return identity_name(label)
