"""A finished shard set, opened for reading: its manifest, its tables as one, its images by row."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shardgen.errors import DataError
from shardgen.files import Descriptor, keeping_open
from shardgen.manifest import MANIFEST, Manifest, read_manifest


class ShardSet:
    """The samples of a set, in the order of its shards; `path` is its folder or one of its manifest files."""

    def __init__(self, path: Path) -> None:
        is_manifest = path.is_file()
        self.folder = path.parent if is_manifest else path
        self.manifest: Manifest = read_manifest(self.folder, path.name if is_manifest else MANIFEST)

    def __len__(self) -> int:
        return self.manifest.num_samples

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.manifest.name

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the table of each shard, all columns or some, so that memory holds one shard at a time."""
        for shard in self.manifest.shards:
            path = self.folder / shard.table
            try:
                yield pq.read_table(path, columns=None if columns is None else list(columns))
            except (OSError, pa.ArrowInvalid) as error:
                raise DataError(f"{path}: {error}; see `facemix verify {self.folder}`") from None

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all shards' tables as one; row number = position of the sample in the set."""
        return pa.concat_tables(self.tables(columns))

    def image(self, row: int) -> bytes:
        """Return the image bytes of the sample at a position in the set."""
        shard = int(np.searchsorted(self._starts, row, "right")) - 1
        offsets, sizes = self._places
        tar = self.folder / f"{self.manifest.shards[shard].name}.tar"
        try:
            content = os.pread(self._open(tar).number, int(sizes[row]), int(offsets[row]))
        except OSError as error:
            raise DataError(f"{tar} cannot be read: {error.strerror}; see `facemix verify {self.folder}`") from None
        if len(content) < sizes[row]:
            raise DataError(f"{tar} ends inside an image; see `facemix verify {self.folder}`")
        return content

    @cached_property
    def _open(self) -> Callable[[Path], Descriptor]:
        return keeping_open()

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        counts = [shard.num_samples for shard in self.manifest.shards]
        return np.cumsum([0, *counts[:-1]])

    @cached_property
    def _places(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        table = self.table(["offset", "size"])
        return table["offset"].to_numpy(), table["size"].to_numpy()
