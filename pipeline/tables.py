"""The shards' tables -> arrays: many parquet files, each read by one thread, straight into rows that await it.

A table is proven before it is believed: its SHA-256 costs a tenth of reading it, and one wrong byte could be a face
under another name. Arrow lets go of the interpreter while it reads, so there are as many threads as cores; with more,
they would only wait for it in turn.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shardgen.errors import DataError

KEY = "key"

One = TypeVar("One")
Result = TypeVar("Result")
Columns = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class TableFile:
    """A shard's table, as its manifest vouches for it."""

    path: Path
    sha256: str
    first_id: int
    """Sample id of its first row."""

    def open(self) -> pq.ParquetFile:
        """Return the table; raise `DataError` unless every byte is as it was written."""
        content = self.path.read_bytes() if self.path.exists() else b""
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise DataError(f"{self.path} is missing or not as it was written; see `facemix verify {self.path.parent}`")
        return pq.ParquetFile(pa.BufferReader(content))


def on_all_cores(work: Callable[[One], Result], jobs: Iterable[One]) -> list[Result]:
    """Return the results of jobs that mostly run outside of the interpreter, in their order."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, jobs))


def read(file: pq.ParquetFile, names: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
    """Return columns of numbers."""
    table = file.read(list(names), use_threads=False)
    return {name: table[name].to_numpy() for name in table.column_names}


def image_sizes(file: pq.ParquetFile) -> set[tuple[int, int]]:
    """Return each (width, height) of a shard's images; where all are alike, the statistics in the file say so."""
    column_of = {name: number for number, name in enumerate(file.schema_arrow.names)}
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    bounds = [
        [one.column(column_of[side]).statistics for side in ("width", "height")] for one in groups if one.num_rows
    ]
    if all(one.min == one.max for sides in bounds for one in sides):
        return {(width.min, height.min) for width, height in bounds}
    columns = read(file, ["width", "height"])
    return set(zip(columns["width"].tolist(), columns["height"].tolist(), strict=True))


def columns_of_numbers(table: TableFile) -> set[str]:
    """Return the names of a table's columns that `fill` can read."""
    columns = list(table.open().schema_arrow)
    return {KEY, *(one.name for one in columns if pa.types.is_integer(one.type) or pa.types.is_floating(one.type))}


def fill(columns: Columns, start: int, table: TableFile) -> None:
    """Read a table into columns, from row `start` on: keys as the numbers they are in hexadecimal, null as NaN."""
    found = table.open().read(list(columns), use_threads=False)
    for name, column in columns.items():
        column[start : start + len(found)] = _key_numbers(found[name]) if name == KEY else found[name].to_numpy()


def _key_numbers(keys: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """Return hexadecimal texts of at most 16 digits as numbers, without a Python object for each."""
    padded = pc.utf8_lpad(keys, 16, "0").combine_chunks().cast(pa.binary()).cast(pa.binary(16))
    digits = np.frombuffer(padded.buffers()[1], np.uint8, 16 * len(padded)).reshape(-1, 16)
    nibbles = (digits & 15) + 9 * (digits >> 6)  # "0" is 0x30, "a" is 0x61
    numbers: npt.NDArray[np.uint64] = (nibbles[:, ::2] << 4 | nibbles[:, 1::2]).view(">u8")[:, 0]
    return numbers
