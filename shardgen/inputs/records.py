"""MXNet RecordIO: the image records of a `.rec` file, with its `.idx` and the list beside it, if any."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
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
from shardgen.sources import CHUNK_RECORDS, NO_IDENTITY, Labels, Records, Source, blocks, each

_CHUNK_HEADS = 1 << 8  # each touches 64 KiB of the file
Keys = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Counting:
    """Keys without a gap, as nearly all files have them: a column that takes no memory."""

    first: int

    def __getitem__(self, records: Records) -> Keys:
        return records + self.first


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordIOSource(Source):
    """Image records of a `.rec` file."""

    columns = ("keys", "offsets", "ends", "paths")

    path: Path
    keys: Keys | _Counting
    offsets: Offsets
    ends: Offsets
    paths: pa.Array | None
    """What the list beside the file calls the records."""

    def names(self) -> Iterator[str]:
        """Yield the list's paths, or the keys as text."""
        if self.paths is not None:
            return each(self.paths)
        return chain.from_iterable(map(str, self.keys[records].tolist()) for records in blocks(len(self)))

    @cached_property
    def _file(self) -> RecordFile:
        return RecordFile(self.path)

    def image(self, record: int) -> bytes:
        """Return the image of the record, its parts joined."""
        try:
            unpacked: ImageRecord = unpack(self._file.payload(int(self.offsets[record])))
        except DataError as error:
            raise Unreadable(f"damaged record: {error}") from None
        if self.labels[record] == NO_IDENTITY and not self.no_identity:
            raise Unreadable(f"no identity: label {unpacked.labels[0]} is no whole number below 2^24")
        return unpacked.image

    def read_all(self) -> Iterator[bytes | Unreadable]:
        """Yield plain records' images with one read each, and what `read` makes of the others."""
        images = self._file.plain_images(self.offsets, self.ends)
        for record, (image, label) in enumerate(zip(images, self.labels.tolist(), strict=True)):
            yield self.attempt(record) if image is None or label == NO_IDENTITY else image

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
    keys, offsets, ends, label = _image_records(file)
    listed = find_list(file.path, keys, list_file)
    if listed is None:
        identities, labels = _number_identities(label)
        listed = ImageList(paths=None, identities=identities, labels=labels)
    return RecordIOSource(
        identities=listed.identities,
        labels=listed.labels,
        no_identity="its list gives neither a folder nor a label" if listed.paths is not None else "",
        path=file.path,
        keys=_Counting(int(keys[0])) if int(keys[-1]) - int(keys[0]) < len(keys) else keys,
        offsets=offsets,
        ends=ends,
        paths=listed.paths,
    )


def _image_records(file: RecordFile) -> tuple[Keys, Offsets, Offsets, npt.NDArray[np.float32]]:
    """Return keys, starts, ends and first labels of the records that hold images, sorted by key."""
    keys, edges, heads = _all_records(file)
    header = _find_header(heads, keys)
    imageless = heads.imageless
    if header is None:
        imageless = np.zeros_like(imageless)
    else:
        first_identity, end = unpack(file.payload(int(edges[header]))).labels
        _check_count(file.path, "images", first_identity - 1, int((~imageless).sum()))
        _check_count(file.path, "records", end, len(imageless))
    if imageless.all():
        raise DataError(f"{file.path} holds no image record, just a header and identities; copy it again")
    if keys is None:
        keys = np.arange(len(imageless))
        if header is not None:
            keys[:header] += 1  # images count from 1, wherever record 0 was written
    rows = _rows_by_key(keys, imageless)
    return keys[rows], edges[:-1][rows], edges[1:][rows], heads.label[rows]


def _all_records(file: RecordFile) -> tuple[Keys | None, Offsets, "_Heads"]:
    """Return keys, if there is an index, edges and heads of all records, in the order of the file.

    A record lies between its edge and the next one.
    """
    index = file.path.with_suffix(".idx")
    keys, starts = read_index(index) if index.exists() else (None, file.scan())
    if not len(starts):
        raise DataError(f"{index} lists no record; delete it to have the .rec scanned instead")
    heads, end = _read_heads(file, starts)
    return keys, np.append(starts, end), heads


def _rows_by_key(keys: Keys, imageless: npt.NDArray[np.bool_]) -> slice | Records:
    """Return where the image records are: usually one stretch, and a stretch of a column takes no more memory."""
    first = int(np.argmin(imageless))
    stretch = slice(first, first + int((~imageless).sum()))
    if not imageless[stretch].any() and (keys[stretch][1:] > keys[stretch][:-1]).all():
        return stretch
    rows = np.flatnonzero(~imageless)
    return rows[np.argsort(keys[rows])]


def _number_identities(label: npt.NDArray[np.float32]) -> tuple[list[str], Labels]:
    """Return the identities' names, in numeric order, and each record's position among them."""
    pieces = [label[start : start + CHUNK_RECORDS] for start in range(0, len(label), CHUNK_RECORDS)]
    numbers = np.unique(np.concatenate([np.unique(piece[_is_identity(piece)]) for piece in pieces]))
    labels = np.empty(len(label), np.int32)
    for start, piece in zip(range(0, len(label), CHUNK_RECORDS), pieces, strict=True):
        ranks = np.where(_is_identity(piece), np.searchsorted(numbers, piece), NO_IDENTITY)
        labels[start : start + CHUNK_RECORDS] = ranks
    return [str(int(number)) for number in numbers], labels


def _is_identity(label: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    is_identity: npt.NDArray[np.bool_] = (label >= 0) & (label < MAX_EXACT_LABEL) & (label == np.floor(label))
    return is_identity


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


def _read_heads(file: RecordFile, starts: Offsets) -> tuple[_Heads, int]:
    """Return the heads of records in the order of the file, and where the last one ends."""
    heads = _Heads(np.empty(len(starts), np.float32), np.empty(len(starts), np.bool_))
    end = 0
    for start in range(0, len(starts), _CHUNK_HEADS):
        chunk = slice(start, start + _CHUNK_HEADS)
        rows = file.heads(starts[chunk])
        ends = file.ends(starts[chunk], rows)
        _check_tiling(file, starts[chunk], np.append(end, ends[:-1]))
        end = int(ends[-1])
        payload_bytes = rows["word"] & LENGTH_MASK
        two_labels = HEADER_BYTES + 8
        split_header = (rows["word"] > LENGTH_MASK) & (payload_bytes < two_labels)  # the magic stands in its header
        too_short = payload_bytes < np.where(rows["flag"] > 0, HEADER_BYTES + 4, HEADER_BYTES)
        label = np.where(rows["flag"] > 0, rows["first_label"], rows["label"])
        heads.label[chunk] = np.where(too_short, np.nan, label)
        heads.imageless[chunk] = (rows["flag"] == 2) & (payload_bytes == two_labels) & ~split_header
        for row in np.flatnonzero(split_header):
            heads.label[start + row] = _first_label(file.payload(int(starts[start + row])))
        file.release()
    if end < file.size_bytes:
        raise DataError(
            f"{file.path}: the .idx ends at byte {end} of {file.size_bytes}; "
            "copy it again, or delete it to have the .rec scanned instead"
        )
    return heads, end


def _first_label(payload: bytes) -> float:
    try:
        return unpack(payload).labels[0]
    except Unreadable:
        return np.nan


def _check_tiling(file: RecordFile, starts: Offsets, due: Offsets) -> None:
    """Raise `DataError` unless each record starts where the one before it ends."""
    if (starts != due).any():
        at = int(np.argmax(starts != due))
        raise DataError(
            f"{file.path}: the .idx continues at byte {starts[at]} where a record should start at {due[at]}: "
            "it lists some records twice or not at all; delete it to have the .rec scanned instead"
        )


def _find_header(heads: _Heads, keys: Keys | None) -> int | None:
    """Return the position of record 0 of InsightFace's layout: that of key 0, or without keys the imageless
    record with the largest label, since the others' labels are keys of images."""
    found = np.flatnonzero(heads.imageless if keys is None else heads.imageless & (keys == 0))
    return int(found[np.argmax(heads.label[found])]) if len(found) else None


def _check_count(path: Path, what: str, promised: float, found: int) -> None:
    """Compare with the header's count, a float32, which large sets exceed the precision of."""
    if abs(promised - found) > np.spacing(np.float32(promised)):
        raise DataError(f"{path}: its header counts {promised:.0f} {what}, {found} are there; copy it again")
