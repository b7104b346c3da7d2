"""LMDB databases as Vec2Face and HSFace ship them, with msgpack values.

`__keys__` lists the keys and `__len__` counts them; a value is a list of the image's bytes, maybe a
feature, and the label.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb
import msgpack
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardgen.errors import DataError, UsageError
from shardgen.images import Unreadable
from shardgen.sources import Source, each, identity_name, number_identities, text

_open_databases: WeakValueDictionary[Path, lmdb.Environment] = WeakValueDictionary()


@dataclass(frozen=True, kw_only=True, eq=False)
class LmdbSource(Source):
    """Values of a database."""

    columns = ("keys", "sizes")

    path: Path
    keys: pa.Array
    sizes: npt.NDArray[np.int64]
    """Bytes of each value, -1 where there is none."""

    def names(self) -> Iterator[str]:
        """Yield the keys."""
        return each(self.keys)

    @cached_property
    def _database(self) -> lmdb.Environment:
        return _opened(self.path)

    def image(self, record: int) -> bytes:
        """Return the image in the record's value."""
        try:
            with self._database.begin(buffers=True) as transaction:
                return _unpack(_get(transaction, self.keys[record].as_py()))[0]
        except lmdb.Error as error:
            raise Unreadable(f"damaged database: {error}") from None

    def files(self) -> Iterator[Path]:
        """Yield the database's file."""
        yield self.path / "data.mdb" if self.path.is_dir() else self.path


def open_lmdb(path: Path) -> LmdbSource:
    """Read the keys and labels of a database, which is a folder with a `data.mdb` or a file.

    Raises `UsageError` when there is none, `DataError` when it is damaged, cut, or not of this layout.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist; give an LMDB file or the folder that holds its data.mdb")
    database = _opened(path)
    try:
        with database.begin(buffers=True) as transaction:
            keys = _keys(path, transaction)
            found = [_size_and_owner(transaction, key) for key in keys]
    except lmdb.Error as error:
        raise DataError(f"{path} is a damaged LMDB database: {error}; copy it again") from None
    identities, labels = number_identities(owner for _, owner in found)
    return LmdbSource(
        identities=identities,
        labels=labels,
        no_identity="its label is neither text nor a number from 0",
        path=path,
        keys=text(keys, path),
        sizes=np.array([size for size, _ in found], np.int64),
    )


def _opened(path: Path) -> lmdb.Environment:
    """Open a database once a process, which is all that LMDB allows; it closes with its last source."""
    path = path.resolve()
    found = _open_databases.get(path)
    if found is None:
        try:
            found = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False)
        except lmdb.Error as error:
            raise DataError(f"{path} is no LMDB database: {error}") from None
        file = path / "data.mdb" if path.is_dir() else path
        needed = (found.info()["last_pgno"] + 1) * found.stat()["psize"]
        if file.stat().st_size < needed:  # or reading it would end the process with a bus error
            raise DataError(f"{file} is cut: {file.stat().st_size} bytes of {needed}; copy it again")
        _open_databases[path] = found
    return found


def _keys(path: Path, transaction: lmdb.Transaction) -> list[str]:
    try:
        count, keys = (msgpack.unpackb(transaction.get(name)) for name in (b"__len__", b"__keys__"))
        keys = [key if isinstance(key, str) else key.decode() for key in keys]
    except (ValueError, TypeError, AttributeError, msgpack.UnpackException):
        raise DataError(
            f"{path} has no readable __len__ and __keys__; its values should be as HSFace's: msgpack, "
            "with the list of all keys under __keys__"
        ) from None
    if count != len(keys):
        raise DataError(f"{path} promises {count} records under __len__ and lists {len(keys)} keys; copy it again")
    if not keys:
        raise DataError(f"{path} lists no record; give a database that holds faces")
    return keys


def _size_and_owner(transaction: lmdb.Transaction, key: str) -> tuple[int, str | None]:
    try:
        value = _get(transaction, key)
    except Unreadable:
        return -1, None
    try:
        return len(value), _owner(_unpack(value)[1])
    except Unreadable:
        return len(value), None


def _get(transaction: lmdb.Transaction, key: str) -> memoryview:
    try:
        value = transaction.get(key.encode())
    except lmdb.BadValsizeError:
        value = None
    if value is None:
        raise Unreadable("missing: the database holds nothing under this key")
    return memoryview(value)


def _unpack(value: memoryview) -> tuple[bytes, object]:
    """Return the image and the label of a value."""
    try:
        fields = msgpack.unpackb(value, raw=True)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise Unreadable(f"damaged: its value is no msgpack: {str(error)[:80]}") from None
    if not isinstance(fields, list) or len(fields) not in (2, 3) or not isinstance(fields[0], bytes):
        raise Unreadable("damaged: its value is no list of an image and a label")
    return fields[0], fields[-1]


def _owner(label: object) -> str | None:
    return identity_name(label.decode(errors="backslashreplace") if isinstance(label, bytes) else label)
