"""Images that lie as they are in larger files: a record is a file's number, an offset and a size."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardgen.errors import DataError, UsageError
from shardgen.files import Descriptor, keeping_open
from shardgen.images import Unreadable
from shardgen.sources import Records, Source, each

NO_IMAGE = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class SliceSource(Source):
    """Slices of files, read one by one: a file cut meanwhile is an error and not a bus error, as a map's is."""

    columns: ClassVar[Sequence[str]] = ("paths", "file_numbers", "offsets", "sizes")

    archives: Sequence[Path]
    paths: pa.Array
    """The records' names."""
    file_numbers: npt.NDArray[np.int32]
    """Positions in `archives`."""
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    """Bytes of each slice; -1 for a record without an image."""

    def names(self) -> Iterator[str]:
        """Yield the records' names."""
        return each(self.paths)

    def image(self, record: int) -> bytes:
        """Return the record's slice."""
        if self.sizes[record] == NO_IMAGE:
            raise Unreadable("no image: the sample holds none")
        return self.slice(record, int(self.offsets[record]), int(self.sizes[record]))

    def slice(self, record: int, offset: int, size: int) -> bytes:
        """Return some bytes of the file that the record lies in."""
        path = self.archives[self.file_numbers[record]]
        try:
            data = os.pread(self._open(path).number, size, offset)
        except OSError as error:
            raise Unreadable(f"cannot be read: {error.strerror}") from None
        if len(data) < size:
            raise Unreadable(f"cut: {path.name} ends before byte {offset + size}")
        return data

    @cached_property
    def _open(self) -> Callable[[Path], Descriptor]:
        return keeping_open()

    def files(self) -> Iterator[Path]:
        """Yield the files that are sliced."""
        return iter(self.archives)

    def part(self, records: Records, **changes: Any) -> Source:
        """Return some of the records, with just the files they lie in."""
        used, numbers = np.unique(self.file_numbers[records], return_inverse=True)
        archives = [self.archives[number] for number in used]
        return super().part(records, archives=archives, file_numbers=numbers.astype(np.int32), **changes)


def files_of(path: Path, suffix: str) -> list[Path]:
    """Return a file, or all files with the suffix below a folder, in sorted order."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"{path} does not exist; give a {suffix} file or a folder of them")
    found = sorted(file for file in path.rglob(f"*{suffix}") if file.is_file() and not file.name.startswith("."))
    if not found:
        raise DataError(f"{path} holds no {suffix} file below it; give the folder that does")
    return found
