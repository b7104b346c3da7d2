"""MXNet RecordIO: the image records of a `.rec` file, with its `.idx` and the list beside it, if any."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardgen.errors import DataError, UsageError
from shardgen.images import Unreadable
from shardgen.inputs.lists import ImageList, find_list
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
from shardgen.sources import NO_IDENTITY, Labels, Source, each

_CHUNK_HEADS = 1 << 8  # each touches 64 KiB of the file


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordIOSource(Source):
    """Image records of a `.rec` file."""

    columns = ("keys", "offsets", "ends", "paths")

    path: Path
    keys: npt.NDArray[np.int64]
    offsets: Offsets
    ends: Offsets
    paths: pa.Array | None
    """What the list beside the file calls the records."""

    def names(self) -> Iterator[str]:
        """Yield the list's paths, or the keys as text."""
        return map(str, self.keys.tolist()) if self.paths is None else each(self.paths)

    @cached_property
    def _file(self) -> RecordFile:
        return RecordFile(self.path)

    def image(self, record: int) -> bytes:
        """Return the image of the record, its parts joined."""
        try:
            unpacked: ImageRecord = unpack(self._file.payload_until(int(self.offsets[record]), int(self.ends[record])))
        except DataError as error:
            raise Unreadable(f"damaged record: {error}") from None
        if self.labels[record] == NO_IDENTITY and not self.no_identity:
            raise Unreadable(f"no identity: label {unpacked.labels[0]} is no whole number below 2^24")
        return unpacked.image

    def files(self) -> Iterator[Path]:
        """Yield the `.rec` file."""
        yield self.path


def open_recordio(path: Path, list_file: Path | None = None) -> RecordIOSource:
    """Read the labels of every image record of a `.rec` file, or of the one in a folder.

    The header and identity records of InsightFace's layout hold no image and are left out; a file
    without a header is taken record by record. Without an `.idx` the file is walked. With a list, the
    one given or one that lies beside the file, records are named and identified as that says. Raises
    `UsageError` when there is no such file, `DataError` when it is cut or contradicts its index or list.
    """
    file = RecordFile(_find_rec(path))
    keys, offsets, heads = _image_records(file)
    listed = find_list(file.path, keys, list_file)
    if listed is None:
        identities, labels = _number_identities(heads.label)
        listed = ImageList(paths=None, identities=identities, labels=labels)
    return RecordIOSource(
        identities=listed.identities,
        labels=listed.labels,
        no_identity="its list gives neither a folder nor a label" if listed.paths is not None else "",
        path=file.path,
        keys=keys,
        offsets=offsets,
        ends=heads.ends,
        paths=listed.paths,
    )


def _image_records(file: RecordFile) -> tuple[npt.NDArray[np.int64], Offsets, "_Heads"]:
    """Return keys, offsets and heads of the records that hold images."""
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
    if header is None:
        return keys, offsets, heads
    first_identity, end = unpack(file.payload(int(offsets[header]))).labels
    _check_count(file.path, "images", first_identity - 1, int((~heads.imageless).sum()))
    _check_count(file.path, "records", end, len(keys))
    if not index.exists():
        keys = keys + (keys < header)  # images count from 1, wherever record 0 was written
    if heads.imageless.all():
        raise DataError(f"{file.path} holds no image record, just a header and identities; copy it again")
    kept = ~heads.imageless
    return keys[kept], offsets[kept], _Heads(heads.label[kept], heads.imageless[kept], heads.ends[kept])


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
