"""Every input as a sized, indexable sequence of records.

A source knows all names and identities before any image is read, in a few bytes a record, so that
wrong tags or a cut file are found in the first minute and not after hours. A part of it, which is what
a worker process gets, knows only its own records.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from operator import not_
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardgen.errors import DataError, UsageError
from shardgen.images import EXTENSIONS, Unreadable
from shardgen.recordio import (
    HEADER_BYTES,
    LENGTH_MASK,
    MAX_EXACT_LABEL,
    ImageRecord,
    Offsets,
    RecordFile,
    read_index,
    unpack,
)

Labels = npt.NDArray[np.int32]
NO_IDENTITY = -1
_CHUNK_RECORDS = 1 << 14
_CHUNK_HEADS = 1 << 8  # each touches 64 KiB of the file


class Source(Protocol):
    """Records of one input."""

    @property
    def identities(self) -> Sequence[str]:
        """Names of the identities."""

    @property
    def labels(self) -> Labels:
        """Each record's position in `identities`, or -1 for none."""

    def __len__(self) -> int:
        """Return the number of records."""

    def names(self) -> Iterator[str]:
        """Yield each record's name: a path, or a key in its file."""

    def read(self, record: int) -> bytes:
        """Return one record's image bytes; raise `Unreadable` with the reason."""

    def part(self, records: npt.NDArray[np.int64]) -> "Source":
        """Return some of the records, without the identities' names: small enough to send to a process."""

    def fingerprint(self) -> str:
        """Return a hash that changes with the input's records, names and identities."""


@dataclass(frozen=True)
class FolderSource:
    """Image files below a folder."""

    root: Path
    paths: pa.Array
    """Relative POSIX paths, 8 bytes and their text each."""
    identities: Sequence[str]
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def names(self) -> Iterator[str]:
        """Yield the relative paths."""
        for start in range(0, len(self.paths), _CHUNK_RECORDS):
            yield from self.paths.slice(start, _CHUNK_RECORDS).to_pylist()

    def read(self, record: int) -> bytes:
        """Return the file's bytes."""
        try:
            return Path(self.root, self.paths[record].as_py()).read_bytes()
        except OSError as error:
            raise Unreadable(f"cannot be read: {error.strerror}") from None

    def part(self, records: npt.NDArray[np.int64]) -> "FolderSource":
        """Return some of the files."""
        return FolderSource(self.root, self.paths.take(pa.array(records)), (), self.labels[records])

    def fingerprint(self) -> str:
        """Hash paths and sizes: whoever adds, removes, renames or mends a file changes the input."""
        digest = hashlib.sha256()
        for name in self.names():
            path = self.root / name
            digest.update(f"{name}\0{path.stat().st_size if path.exists() else None}\n".encode())
        return digest.hexdigest()


def open_folder(root: Path) -> tuple[FolderSource, list[str]]:
    """List the images below `root` in sorted order; return them and the files that are no images.

    The identity of an image is the folder it lies in, relative to `root`. An image directly in `root`
    has no such folder and counts as an identity of its own. Raises `UsageError` when there is no such
    folder, `DataError` when it holds no image.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder; give the one that holds a folder of images per identity")
    ignored: list[str] = []
    identities: list[str] = []
    labels: list[npt.NDArray[np.int32]] = []
    chunks: list[pa.Array] = []
    for folder, names in _image_folders(root, ignored):
        owners = [folder] if folder else names
        labels.append((len(identities) + np.arange(len(names)) * (not folder)).astype(np.int32))
        identities += owners
        chunks.append(_text([f"{folder}/{name}" if folder else name for name in names]))
    if not chunks:
        raise DataError(
            f"{root} holds no image below it ({len(ignored)} other files); "
            f"images end in {', '.join(sorted(EXTENSIONS))}"
        )
    return FolderSource(root, pa.concat_arrays(chunks), identities, np.concatenate(labels)), ignored


def _image_folders(root: Path, ignored: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield (relative folder, sorted image names) of every folder with images; note other files."""
    for folder, subfolders, files in os.walk(root, onerror=_raise, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        _refuse_loops(Path(folder), subfolders)
        relative = "" if folder == str(root) else Path(folder).relative_to(root).as_posix()
        visible = sorted(name for name in files if not name.startswith("."))
        is_image = [name.rpartition(".")[2].lower() in EXTENSIONS for name in visible]
        ignored += [f"{relative}/{name}".lstrip("/") for name in compress(visible, map(not_, is_image))]
        if any(is_image):
            yield relative, list(compress(visible, is_image))


def _refuse_loops(folder: Path, subfolders: list[str]) -> None:
    for path in (folder / name for name in subfolders):
        if path.is_symlink() and path.resolve() in path.absolute().parents:
            raise DataError(f"{path} links to a folder that it lies in, so its faces would count twice; remove it")


def _raise(error: OSError) -> None:
    raise error  # a folder that cannot be listed must not be skipped in silence


def _text(names: list[str]) -> pa.Array:
    try:
        return pa.array(names, pa.large_string())
    except UnicodeEncodeError as error:
        raise DataError(f"{error.object!r} is no UTF-8 file name; rename it") from None


@dataclass(frozen=True)
class RecordIOSource:
    """Image records of a `.rec` file."""

    path: Path
    keys: npt.NDArray[np.int64]
    offsets: Offsets
    identities: Sequence[str]
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def names(self) -> Iterator[str]:
        """Yield the keys, as text."""
        return map(str, self.keys)

    @cached_property
    def _file(self) -> RecordFile:
        return RecordFile(self.path)

    def read(self, record: int) -> bytes:
        """Return the image of the record, its parts joined."""
        try:
            unpacked: ImageRecord = unpack(self._file.payload(int(self.offsets[record])))
        except DataError as error:
            raise Unreadable(f"damaged record: {error}") from None
        if self.labels[record] == NO_IDENTITY:
            raise Unreadable(f"no identity: label {unpacked.labels[0]} is no whole number below 2^24")
        return unpacked.image

    def part(self, records: npt.NDArray[np.int64]) -> "RecordIOSource":
        """Return some of the records; the file is opened again where they are read."""
        return RecordIOSource(self.path, self.keys[records], self.offsets[records], (), self.labels[records])

    def fingerprint(self) -> str:
        """Hash keys, offsets and identities: another file, order or labelling is another input."""
        digest = hashlib.sha256("\n".join([str(self.path.stat().st_size), *self.identities]).encode())
        for column in (self.keys, self.offsets, self.labels):
            digest.update(column.tobytes())
        return digest.hexdigest()


def open_recordio(path: Path) -> RecordIOSource:
    """Read the labels of every image record of a `.rec` file, or of the one in a folder.

    The header and identity records of InsightFace's layout hold no image and are left out; a file
    without a header is taken record by record. Without an `.idx` the file is walked. Raises
    `UsageError` when there is no such file, `DataError` when it is cut or contradicts its index.
    """
    file = RecordFile(_find_rec(path))
    index = file.path.with_suffix(".idx")
    if index.exists():
        keys, offsets = read_index(index)
    else:
        offsets = file.scan()
        keys = np.arange(len(offsets))
    if not len(keys):
        raise DataError(f"{index} lists no record; delete it to have the .rec scanned instead")
    heads = _read_heads(file, offsets)
    _check_tiling(file, offsets, heads.ends)
    header = _find_header(heads, keys if index.exists() else None)
    if header is not None:
        first_identity, end = unpack(file.payload(int(offsets[header]))).labels
        _check_count(file.path, "images", first_identity - 1, int((~heads.imageless).sum()))
        _check_count(file.path, "records", end, len(keys))
        if not index.exists():
            keys = keys + (keys < header)  # images count from 1, wherever record 0 was written
        keys, offsets = keys[~heads.imageless], offsets[~heads.imageless]
    label = heads.label if header is None else heads.label[~heads.imageless]
    if not len(keys):
        raise DataError(f"{file.path} holds no image record, just a header and identities; copy it again")
    identities, labels = _number_identities(label)
    return RecordIOSource(file.path, keys, offsets, identities, labels)


def _number_identities(label: npt.NDArray[np.float32]) -> tuple[list[str], Labels]:
    """Return the identities' names, in numeric order, and each record's position among them."""
    is_identity = (label >= 0) & (label < MAX_EXACT_LABEL) & (label == np.floor(label))
    numbers, ranks = np.unique(np.where(is_identity, label, NO_IDENTITY), return_inverse=True)
    unlabelled = int(numbers[0] == NO_IDENTITY)
    return [str(int(number)) for number in numbers[unlabelled:]], (ranks - unlabelled).astype(np.int32)


def _find_rec(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"{path} does not exist; give a .rec file or the folder that holds it")
    found = sorted(path.glob("*.rec"))
    if path / "train.rec" in found:
        return path / "train.rec"
    if len(found) != 1:
        names = ", ".join(rec.name for rec in found) or "none"
        raise DataError(f"{path} should hold one .rec file and holds {names}; give the file itself")
    return found[0]


@dataclass(frozen=True)
class _Heads:
    """What the starts of all records tell, a row a record."""

    label: npt.NDArray[np.float32]
    """The first label, NaN where the payload is too short for one."""
    imageless: npt.NDArray[np.bool_]
    """Whether it holds two labels and nothing else, as InsightFace's header and identity records do."""
    ends: Offsets


def _read_heads(file: RecordFile, offsets: Offsets) -> _Heads:
    count = len(offsets)
    heads = _Heads(np.empty(count, np.float32), np.empty(count, np.bool_), np.empty(count, np.int64))
    for start in range(0, count, _CHUNK_HEADS):
        chunk = slice(start, start + _CHUNK_HEADS)
        rows = file.heads(offsets[chunk])
        heads.ends[chunk] = file.ends(offsets[chunk], rows)
        payload_bytes = rows["word"] & LENGTH_MASK
        two_labels = HEADER_BYTES + 8
        split_header = (rows["word"] > LENGTH_MASK) & (payload_bytes < two_labels)  # the magic stands in its header
        too_short = payload_bytes < np.where(rows["flag"] > 0, HEADER_BYTES + 4, HEADER_BYTES)
        label = np.where(rows["flag"] > 0, rows["first_label"], rows["label"])
        heads.label[chunk] = np.where(too_short, np.nan, label)
        heads.imageless[chunk] = (rows["flag"] == 2) & (payload_bytes == two_labels) & ~split_header
        for row in np.flatnonzero(split_header):
            heads.label[start + row] = _first_label(file.payload(int(offsets[start + row])))
        file.release()
    return heads


def _first_label(payload: bytes) -> float:
    try:
        return unpack(payload).labels[0]
    except Unreadable:
        return np.nan


def _check_tiling(file: RecordFile, offsets: Offsets, ends: Offsets) -> None:
    """Raise `DataError` unless the records follow each other from the file's first byte to its last."""
    order = np.argsort(offsets)
    starts = offsets[order]
    due = np.concatenate([[0], ends[order][:-1]])
    if (starts != due).any():
        at = int(np.argmax(starts != due))
        raise DataError(
            f"{file.path}: the .idx continues at byte {starts[at]} where a record should start at {due[at]}: "
            "it lists some records twice or not at all; delete it to have the .rec scanned instead"
        )
    if ends[order[-1]] < file.size_bytes:
        raise DataError(
            f"{file.path}: the .idx ends at byte {ends[order[-1]]} of {file.size_bytes}; "
            "copy it again, or delete it to have the .rec scanned instead"
        )


def _find_header(heads: _Heads, keys: npt.NDArray[np.int64] | None) -> int | None:
    """Return the position of record 0 of InsightFace's layout: that of key 0, or without keys the imageless
    record with the largest label, since the others' labels are keys of images."""
    imageless = np.flatnonzero(heads.imageless)
    if keys is not None:
        return next((row for row in imageless.tolist() if keys[row] == 0), None)
    return int(imageless[np.argmax(heads.label[imageless])]) if len(imageless) else None


def _check_count(path: Path, what: str, promised: float, found: int) -> None:
    """Compare with the header's count, a float32, which large sets exceed the precision of."""
    if abs(promised - found) > np.spacing(np.float32(promised)):
        raise DataError(f"{path}: its header counts {promised:.0f} {what}, {found} are there; copy it again")
