"""MXNet RecordIO, read and written without MXNet.

A record is magic, a word that holds flag and length, the payload, and zeros up to 4 bytes. A payload
that itself holds the magic at a 4-byte boundary is cut there into parts, and the reader puts the magic
back between them (dmlc-core `src/recordio.cc`). The payload of an image record is MXNet's `IRHeader`
(`mx.recordio.pack`): flag, label, id, id2, then `flag` float32 labels, then the image.
"""

import mmap
import os
import struct
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from shardgen.errors import DataError
from shardgen.images import Unreadable

MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_WORDS = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_PLAIN = struct.Struct("<III")  # the two words and the header's flag
HEADER_BYTES = _HEADER.size
LENGTH_MASK = (1 << 29) - 1
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_PAGES_AROUND_BYTES = 1 << 16  # what the system maps around a touched page
_MAX_TOUCHED_BYTES = 1 << 24
MAX_EXACT_LABEL = 2**24
"""float32 labels are exact up to here; larger identities cannot be told apart."""

Offsets = npt.NDArray[np.int64]

# The first bytes of a record as one row, so that labels of many records are read by NumPy at once.
HEAD = np.dtype(
    [
        ("magic", "<u4"),
        ("word", "<u4"),
        ("flag", "<u4"),
        ("label", "<f4"),
        ("id", "<u8"),
        ("id2", "<u8"),
        ("first_label", "<f4"),
        ("second_label", "<f4"),
    ]
)
Heads = npt.NDArray[np.void]


class ImageRecord(NamedTuple):
    """The payload of a record, unpacked."""

    labels: tuple[float, ...]
    id: int
    image: bytes


class RecordFile:
    """A memory-mapped `.rec` file; records are addressed by their byte offset."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = path.stat().st_size
        if not self.size_bytes:
            raise DataError(f"{path} is empty (0 bytes); copy it again")
        self._touched_bytes = 0
        with path.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._descriptor = os.dup(stream.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def payload(self, offset: int) -> bytes:
        """Return the payload of the record at `offset`, its parts joined."""
        return _MAGIC_BYTES.join(self._map[start : start + length] for start, length in self._parts(offset))

    def plain_images(self, offsets: Offsets, ends: Offsets) -> Iterator[bytes | None]:
        """Yield the image of each record between two offsets, read at once; None where it is in parts, or at fault."""
        records = map(os.pread, repeat(self._descriptor), (ends - offsets).tolist(), offsets.tolist())
        return map(_plain_image, records)

    def end(self, offset: int) -> int:
        """Return where the record at `offset` ends and the next one starts."""
        *_, (start, length) = self._parts(offset)
        return start + length + -length % 4

    def _parts(self, offset: int) -> Iterator[tuple[int, int]]:
        """Yield start and length of each part's data of the record at `offset`."""
        flag, start, length = self._part(offset)
        yield start, length
        if flag not in (_WHOLE, _FIRST):
            raise DataError(f"{self.path} byte {offset}: the middle of a record, not its start")
        while flag in (_FIRST, _MIDDLE):
            flag, start, length = self._part(start + length + -length % 4)
            if flag not in (_MIDDLE, _LAST):
                raise DataError(f"{self.path} byte {offset}: a record of several parts lacks its last")
            yield start, length

    def scan(self) -> Offsets:
        """Return the offset of every record by walking the whole file."""
        starts = array("q")
        position = 0
        while position < self.size_bytes:
            starts.append(position)
            position = self.end(position)
        return np.array(starts, np.int64)

    def heads(self, offsets: Offsets) -> Heads:
        """Return the records' first bytes as `HEAD` rows, unchecked past the end of each record."""
        byte_positions = offsets[:, None] + np.arange(HEAD.itemsize)
        content = np.frombuffer(self._map, np.uint8)
        heads: Heads = content[np.clip(byte_positions, 0, self.size_bytes - 1)].view(HEAD)[:, 0]
        return heads

    def release(self) -> None:
        """Let the system forget the pages read so far, so that reading a large file stays small."""
        self._map.madvise(mmap.MADV_DONTNEED)
        self._touched_bytes = 0

    def _part(self, offset: int) -> tuple[int, int, int]:
        """Return (flag, start of the data, its length) of the part at `offset`, checked."""
        if offset < 0 or offset + _WORDS.size > self.size_bytes:
            raise DataError(self._cut(offset, _WORDS.size))
        magic, word = _WORDS.unpack_from(self._map, offset)
        if magic != MAGIC:
            raise DataError(f"{self.path} byte {offset}: no record starts here; the file or its .idx is damaged")
        length = word & LENGTH_MASK
        self._touched_bytes += length + _PAGES_AROUND_BYTES
        if self._touched_bytes > _MAX_TOUCHED_BYTES:
            self.release()
        if offset + _WORDS.size + length > self.size_bytes:
            raise DataError(self._cut(offset, _WORDS.size + length))
        return word >> 29, offset + _WORDS.size, length

    def _cut(self, offset: int, needed_bytes: int) -> str:
        return (
            f"{self.path} is cut: the record at byte {offset} needs {needed_bytes} bytes, "
            f"the file ends at {self.size_bytes}; copy it again"
        )

    def ends(self, offsets: Offsets, heads: Heads) -> Offsets:
        """Return where each record ends; raise `DataError` for an offset at which no record starts."""
        inside = (offsets >= 0) & (offsets <= self.size_bytes - _WORDS.size)
        flags, lengths = heads["word"] >> 29, (heads["word"] & LENGTH_MASK).astype(np.int64)
        plain = inside & (heads["magic"] == MAGIC) & (flags == _WHOLE)
        ends = offsets + np.where(plain, _WORDS.size + lengths + -lengths % 4, 0)
        plain &= offsets + _WORDS.size + lengths <= self.size_bytes
        for row in np.flatnonzero(~plain).tolist():  # several parts, or at fault
            ends[row] = self.end(int(offsets[row]))
        return ends


def read_index(path: Path) -> tuple[npt.NDArray[np.int64], Offsets]:
    """Return the keys and offsets of an `.idx` file, in the order of the offsets.

    Raises `DataError` for anything but `key<TAB>offset` lines of whole numbers, or repeated keys.
    """
    keys, offsets = _read_columns(path)
    if (offsets[1:] < offsets[:-1]).any():
        order = np.argsort(offsets, kind="stable")
        keys, offsets = keys[order], offsets[order]
    ordered = np.sort(keys)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise DataError(f"{path} lists key {repeated[0]} twice; delete it to have the .rec scanned instead")
    return keys, offsets


def _read_columns(path: Path) -> tuple[npt.NDArray[np.int64], Offsets]:
    """Return keys and offsets, line by line; the text is never in memory as a whole."""
    keys, offsets = array("q"), array("q")
    try:
        for lines in pa.csv.open_csv(
            path,
            # pyarrow reads dozens of blocks ahead and keeps their memory
            read_options=pa.csv.ReadOptions(column_names=["key", "offset"], block_size=1 << 14, use_threads=False),
            parse_options=pa.csv.ParseOptions(delimiter="\t"),
            convert_options=pa.csv.ConvertOptions(column_types={"key": pa.int64(), "offset": pa.int64()}),
        ):
            if any(column.null_count for column in lines.columns):
                raise DataError(
                    f"{path} has a line that lacks its key or offset; delete it to have the .rec scanned instead"
                )
            keys.frombytes(lines["key"].to_numpy().tobytes())
            offsets.frombytes(lines["offset"].to_numpy().tobytes())
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is no index of key<TAB>offset lines: {' '.join(str(error).split())}") from None
    return np.frombuffer(keys, np.int64), np.frombuffer(offsets, np.int64)


def unpack(payload: bytes | memoryview) -> ImageRecord:
    """Split an image record's payload; raise `Unreadable` when it is too short for its header."""
    if len(payload) < HEADER_BYTES:
        raise Unreadable(f"damaged record: {len(payload)} bytes, shorter than the {HEADER_BYTES} of a record's header")
    flag, label, record_id, _ = _HEADER.unpack_from(payload)
    if not flag:
        return ImageRecord((label,), record_id, bytes(payload[HEADER_BYTES:]))
    image_start = HEADER_BYTES + 4 * flag
    if image_start > len(payload):
        raise Unreadable(f"damaged record: its header promises {flag} labels, its {len(payload)} bytes end before them")
    labels = struct.unpack_from(f"<{flag}f", payload, HEADER_BYTES)
    return ImageRecord(labels, record_id, bytes(payload[image_start:]))


def _plain_image(record: bytes) -> bytes | None:
    if len(record) < _PLAIN.size:
        return None
    magic, word, num_labels = _PLAIN.unpack_from(record)
    start, end = _WORDS.size + HEADER_BYTES + 4 * num_labels, _WORDS.size + word
    is_plain = magic == MAGIC and word <= LENGTH_MASK and start <= end <= len(record)
    return record[start:end] if is_plain else None


def pack(labels: Sequence[float], record_id: int, image: bytes) -> bytes:
    """Return an image record's payload; one label goes into the header, several follow it."""
    if len(labels) == 1:
        return _HEADER.pack(0, labels[0], record_id, 0) + image
    return _HEADER.pack(len(labels), 0.0, record_id, 0) + struct.pack(f"<{len(labels)}f", *labels) + image


def _frame(payload: bytes) -> bytes:
    """Return the bytes of a record in the file: cut wherever the payload holds the magic."""
    if len(payload) > LENGTH_MASK:
        raise ValueError(f"a record of {len(payload)} bytes; RecordIO holds at most {LENGTH_MASK}")
    cuts = [at for at in _occurrences(payload) if at % 4 == 0 and at + 4 <= len(payload)]
    starts = [0, *(at + 4 for at in cuts)]
    framed: list[bytes] = []
    for part, (start, end) in enumerate(zip(starts, [*cuts, len(payload)], strict=True)):
        flag = _WHOLE if not cuts else _FIRST if part == 0 else _LAST if part == len(cuts) else _MIDDLE
        framed += [_WORDS.pack(MAGIC, flag << 29 | (end - start)), payload[start:end]]
    return b"".join([*framed, bytes(-len(payload) % 4)])


def _occurrences(payload: bytes) -> list[int]:
    found: list[int] = []
    at = payload.find(_MAGIC_BYTES)
    while at >= 0:
        found.append(at)
        at = payload.find(_MAGIC_BYTES, at + 1)
    return found


class RecordWriter:
    """Writes `<stem>.rec` and `<stem>.idx`."""

    def __init__(self, stem: Path) -> None:
        self._records = stem.with_suffix(".rec").open("wb")
        self._index = stem.with_suffix(".idx").open("w")

    def write(self, key: int, payload: bytes) -> None:
        """Append one record under `key`."""
        self._index.write(f"{key}\t{self._records.tell()}\n")
        self._records.write(_frame(payload))

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._records.close()
        self._index.close()


def write_insightface(
    folder: Path, images_of_identity: Iterable[Iterable[bytes]], height_width: tuple[int, int] = (112, 112)
) -> None:
    """Write `train.rec`, `train.idx` and `property` in InsightFace's layout, identity 0 first.

    Images under keys 1..N, then one record an identity with its range of keys, then record 0, which
    tells where the identity records are. Images are taken one at a time, so they can come from anywhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with RecordWriter(folder / "train") as writer:
        key = 1
        ranges: list[tuple[int, int]] = []
        for identity, images in enumerate(images_of_identity):
            first_key = key
            for image in images:
                writer.write(key, pack([identity], key, image))
                key += 1
            ranges.append((first_key, key))
        first_identity_key = key
        for first_last in ranges:
            writer.write(key, pack(first_last, key, b""))
            key += 1
        writer.write(0, pack((first_identity_key, key), 0, b""))
    (folder / "property").write_text(f"{len(ranges)},{height_width[0]},{height_width[1]}\n")
