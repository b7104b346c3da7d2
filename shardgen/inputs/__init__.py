"""Every kind of input, one module each, and the function that opens any of them."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from shardgen.errors import DataError, UsageError
from shardgen.inputs.folders import open_folder
from shardgen.inputs.lmdbs import open_lmdb
from shardgen.inputs.parquets import open_parquet
from shardgen.inputs.records import open_recordio
from shardgen.inputs.webdataset import open_webdataset
from shardgen.inputs.zips import open_zip
from shardgen.manifest import MANIFEST
from shardgen.sources import Source, first_of, identify, is_image

Kind = Literal["recordio", "folder", "zip", "lmdb", "webdataset", "parquet"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_KIND_OF_SUFFIX: dict[str, Kind] = {
    ".rec": "recordio",
    ".zip": "zip",
    ".mdb": "lmdb",
    ".lmdb": "lmdb",
    ".tar": "webdataset",
    ".tgz": "webdataset",
    ".parquet": "parquet",
}
_MAX_LOOKED_AT = 10_000  # files of a folder, to tell what it holds


def open_source(
    kind: Kind | Literal["auto"],
    path: Path,
    *,
    identity_pattern: str | None = None,
    list_file: Path | None = None,
    identity_column: str | None = None,
    spool_folder: Path | None = None,
) -> Source:
    """Open an input of some kind, or of the kind that it looks like.

    `identity_pattern` takes identities from the records' names, whatever the input says; the other
    options are for one kind each, as its own function explains. Raises `UsageError` for an option that
    does not fit and for a path whose kind cannot be told, `DataError` for data that cannot be used.
    """
    kind = recognise(path) if kind == "auto" else kind
    for option, value, needed in (("list", list_file, "recordio"), ("identity column", identity_column, "parquet")):
        if value is not None and kind != needed:
            raise UsageError(f"{option} {value} is for {needed} inputs, {path} is read as {kind}; leave it out")
    source = _open(kind, path, list_file, identity_column, spool_folder)
    if identity_pattern is not None:
        source = identify(source, identity_pattern)
    if np.all(source.labels < 0):
        raise DataError(
            f"{path}: no record says whose face it is; give an identity pattern that finds it in names such as "
            f"{first_of(source)}"
        )
    return source


def _open(
    kind: Kind, path: Path, list_file: Path | None, identity_column: str | None, spool_folder: Path | None
) -> Source:
    if kind == "recordio":
        return open_recordio(path, list_file)
    if kind == "parquet":
        return open_parquet(path, identity_column, spool_folder)
    if kind == "folder":
        return open_folder(path)
    if kind == "zip":
        return open_zip(path)
    return open_lmdb(path) if kind == "lmdb" else open_webdataset(path)


def recognise(path: Path) -> Kind:
    """Tell what kind of input a path is; raise `UsageError` when it is none or could be several."""
    if not path.exists():
        raise UsageError(f"{path} does not exist; give a file or folder of faces")
    if (path / MANIFEST).is_file():
        return "webdataset"
    files = _visible_files(path) if path.is_dir() else iter([path.name])
    kinds = {kind for name in islice(files, _MAX_LOOKED_AT) if (kind := _kind_of(name)) is not None}
    if len(kinds) != 1 or (kinds == {"folder"} and path.is_file()):
        looks = " and ".join(sorted(kinds)) or "none of them"
        raise UsageError(f"{path} looks like {looks}; say which input it is: {', '.join(KINDS)}")
    return kinds.pop()


def _visible_files(folder: Path) -> Iterator[str]:
    for _, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from sorted(name for name in names if not name.startswith("."))


def _kind_of(name: str) -> Kind | None:
    """Return the kind of input that a file is, or that it is an image of."""
    if is_image(name):
        return "folder"
    if ".tar." in name.lower():
        return "webdataset"  # which says what to do about compressed ones
    return _KIND_OF_SUFFIX.get(Path(name).suffix.lower())
