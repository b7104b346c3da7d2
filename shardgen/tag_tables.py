"""Tables of tags: CSV or parquet files with a row per identity, path or sample key.

A table is read piece by piece and kept as codes, so the 47 columns of MAAD-Face's 3.3 M rows take
2 bytes each. Rows are found by exact text: nothing is guessed from half a path.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from shardgen.errors import DataError, UsageError
from shardgen.tags import AxisEncoder, Records, Tags, check_axes, chunks, compacted, tags_of

Key = Literal["identity", "path", "key"]
_KEYS: tuple[Key, ...] = ("identity", "path", "key")
_IDENTITY_SPELLINGS = ("identity", "identity_id", "id", "subject", "subject_id", "class")
_PATH_SPELLINGS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img")
_SPELLINGS: Mapping[str, Key] = {
    **dict.fromkeys(_IDENTITY_SPELLINGS, "identity"),
    **dict.fromkeys(_PATH_SPELLINGS, "path"),
    "key": "key",
}
_FAIRFACE = ["file", "age", "gender", "race", "service_test"]
_MAAD_FACE = ["Filename", "Identity", "Male"]
_KEY_NAMES = "identity, path or key"
_MAAD_FACE_MEANINGS = {"1": "yes", "-1": "no", "0": ""}


@dataclass(frozen=True)
class TagTable:
    """Tags by identity, by path or by sample key."""

    path: Path
    key: Key
    keys: pa.Array
    """What the rows are about, each once."""
    tags: Tags
    """A row a key."""


@dataclass(frozen=True)
class _Layout:
    """What the columns of a table are."""

    key: Key
    key_column: int
    axes: Mapping[str, int]
    """Axis -> position of its column."""
    meanings: Mapping[str, str] = field(default_factory=dict)
    """What the values stand for, where not for themselves."""


def read_table(path: Path) -> TagTable:
    """Read a `.parquet` file, or a CSV whose first row names its columns.

    One column must be `identity`, `path` or `key` (or, without any of them, a usual spelling such as
    `filename`); every other is a tag axis. FairFace's CSV gives age, gender and ethnicity by path, and
    MAAD-Face's 47 attributes are yes, no or unknown by its Filename, whatever its Identity. Raises
    `DataError` when a key repeats with other values or a row has another number of fields,
    `UsageError` when the columns do not say what they are.
    """
    if not path.is_file():
        raise UsageError(f"{path} is no file; a table of tags is a CSV or parquet with a column named {_KEY_NAMES}")
    try:
        header, batches = _open_parquet(path) if path.suffix == ".parquet" else _open_csv(path)
        layout = _layout_of(path, header)
        encoders = [AxisEncoder(axis, layout.meanings) for axis in layout.axes]
        keys: list[pa.Array] = []
        for batch in batches:
            keys.append(_key_texts(_plain(batch, layout.key_column)))
            for encoder, column in zip(encoders, layout.axes.values(), strict=True):
                encoder.add(_plain(batch, column))
    except (UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        kind = "parquet file of texts and numbers" if path.suffix == ".parquet" else "CSV in UTF-8"
        raise DataError(f"{path} is no {kind}: {' '.join(str(error).split())}; mend that row or column") from None
    if not keys:
        raise DataError(f"{path} has no row below its header, so it tags nothing; give a table with rows")
    return _without_repeats(path, layout.key, pa.concat_arrays(keys), tags_of(encoders))


def _open_parquet(path: Path) -> tuple[list[str], Iterator[pa.RecordBatch]]:
    file = pq.ParquetFile(path)
    return file.schema_arrow.names, file.iter_batches()


def _open_csv(path: Path) -> tuple[list[str], Iterator[pa.RecordBatch]]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        lines = csv.reader(stream)
        header = [name.strip() for name in next(lines, [])]
        header_lines = lines.line_num
        has_rows = any(lines)
    return header, _csv_batches(path, header, header_lines) if has_rows else iter(())


def _csv_batches(path: Path, header: list[str], header_lines: int) -> Iterator[pa.RecordBatch]:
    yield from pcsv.open_csv(
        path,
        read_options=pcsv.ReadOptions(
            column_names=header,
            skip_rows=header_lines,
            use_threads=False,  # only so do errors name the row
        ),
        parse_options=pcsv.ParseOptions(newlines_in_values=True),
        convert_options=pcsv.ConvertOptions(column_types=dict.fromkeys(header, pa.string())),
    )


def _layout_of(path: Path, header: Sequence[str]) -> _Layout:
    if header == _FAIRFACE:
        return _Layout("path", 0, {"age": 1, "gender": 2, "ethnicity": 3})
    if header[:3] == _MAAD_FACE:
        return _Layout("path", 0, _axes(path, header, {0, 1}), _MAAD_FACE_MEANINGS)
    exact = [(key, header.index(key)) for key in _KEYS if key in header]
    spelled = [(_SPELLINGS[name.lower()], c) for c, name in enumerate(header) if name.lower() in _SPELLINGS]
    keys = exact or spelled
    if len(keys) != 1:
        raise UsageError(
            f"{path}: columns {', '.join(header) or '(none)'} need exactly one named {_KEY_NAMES}; rename some"
        )
    key, column = keys[0]
    return _Layout(key, column, _axes(path, header, {column}))


def _axes(path: Path, header: Sequence[str], others: set[int]) -> dict[str, int]:
    columns = [column for column in range(len(header)) if column not in others]
    if not columns:
        raise UsageError(f"{path} has no column beside its key; add one for each tag axis")
    check_axes([header[column] for column in columns], path.name)
    return {header[column]: column for column in columns}


def _plain(batch: pa.RecordBatch, column: int) -> pa.Array:
    name, kind = batch.schema.names[column], batch.schema.types[column]
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise pa.ArrowInvalid(f"column {name} holds {kind}")
    return batch.column(column)


def _key_texts(column: pa.Array) -> pa.Array:
    if pa.types.is_floating(column.type):
        column = column.cast(pa.int64())  # whole numbers that a null somewhere has turned into floats
    return pc.utf8_trim_whitespace(column.cast(pa.large_string()).fill_null(""))


def _without_repeats(path: Path, key: Key, keys: pa.Array, tags: Tags) -> TagTable:
    first = pc.index_in(keys, value_set=keys).to_numpy()
    repeats = np.flatnonzero(first != np.arange(len(first)))
    differs = (tags.codes[repeats] != tags.codes[first[repeats]]).any(axis=1)
    if differs.any():
        row, before = (int(rows[differs][0]) for rows in (repeats, first[repeats]))
        raise DataError(
            f"{path}: {key} {keys[row]} is listed twice with different tags, {_shown(tags, before)} in row "
            f"{before + 2} and {_shown(tags, row)} in row {row + 2}; keep the right one"
        )
    if len(repeats):
        once = np.delete(np.arange(len(first)), repeats)
        keys, tags = keys.take(pa.array(once)), tags.part(once)
    return TagTable(path, key, keys, tags)


def _shown(tags: Tags, row: int) -> str:
    return ", ".join(tags.values_of(row).values())


def join_table(table: TagTable, records: Records, ignore_extra: bool = False) -> Tags:
    """Give every record its row of the table, unknown where there is none.

    Raises `DataError` when the table speaks of identities, paths or keys that the records do not have,
    unless `ignore_extra`.
    """
    names = {"identity": lambda: records.identities, "path": records.names, "key": records.keys}[table.key]()
    known = pa.chunked_array([pa.array(chunk, pa.large_string()) for chunk in chunks(names)], pa.large_string())
    rows = pc.index_in(known, value_set=table.keys).fill_null(-1).to_numpy()
    if not ignore_extra:
        _refuse_extra(table, known, rows)
    if table.key == "identity":
        rows = np.append(rows, -1)[records.labels]
    unknown = np.zeros((1, len(table.tags.axes)), np.int16)  # row -1
    return compacted(Tags(table.tags.axes, np.concatenate([table.tags.codes, unknown])[rows]))


def _refuse_extra(table: TagTable, known: pa.ChunkedArray, rows: npt.NDArray[np.int32]) -> None:
    is_extra = np.ones(len(table.keys), np.bool_)
    is_extra[rows[rows >= 0]] = False
    if is_extra.any():
        first = table.keys[int(np.argmax(is_extra))].as_py()
        raise DataError(
            f"{table.path}: {is_extra.sum()} of {len(is_extra)} rows are of no {table.key} of the data, "
            f"such as {first} ({_nearest(first, known)}); correct the names, or pass --ignore-extra-tags"
        )


def _nearest(name: str, known: pa.ChunkedArray) -> str:
    """Say what the data calls a name that starts from another folder, or else what its names look like."""
    parts = name.split("/")
    shorter = pa.array(["/".join(parts[start:]) for start in range(1, len(parts))], pa.large_string())
    alike = known.filter(pc.or_(pc.ends_with(known, f"/{name}"), pc.is_in(known, value_set=shorter)))
    if len(alike):
        return f"the data calls it {alike[0]}"
    return f"the data has, for one, {known[0]}" if len(known) else "the data has none"
