"""Zip archives of image folders, read where they are: the same records as from the unpacked folder.

The directory of an archive is parsed once; after that a record is where its local header starts, what
its bytes should be and how they are packed. What is read must have the length and the checksum that
the directory promises.
"""

import os
import struct
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, ClassVar
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
import numpy.typing as npt

from shardgen.errors import DataError
from shardgen.images import Unreadable
from shardgen.inputs.folders import no_images
from shardgen.inputs.slices import SliceSource, files_of
from shardgen.sources import folder_identity, is_image, number_identities, text

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED, _UTF8_NAME = 0x1, 0x800
_MAX_IMAGE_BYTES = 1 << 28  # so that a few bytes cannot unpack to all of the memory
_RAW_DEFLATE = -15
_MAX_END_BYTES = 76 + 22 + (1 << 16)  # zip64 end and locator, end, comment
_COUNT_MODULUS = 1 << 16  # what writers that know no zip64 count in

_ENTRY = np.dtype(
    [
        ("file_numbers", np.int32),
        ("offsets", np.int64),
        ("sizes", np.int64),
        ("image_sizes", np.int64),
        ("checksums", np.uint32),
        ("name_checksums", np.uint32),
        ("methods", np.uint8),
    ]
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ZipSource(SliceSource):
    """Members of zip archives; `offsets` are those of local headers, `sizes` those of the packed bytes."""

    columns: ClassVar[Sequence[str]] = (*SliceSource.columns, "image_sizes", "checksums", "name_checksums", "methods")

    image_sizes: npt.NDArray[np.int64]
    checksums: npt.NDArray[np.uint32]
    name_checksums: npt.NDArray[np.uint32]
    methods: npt.NDArray[np.uint8]

    def image(self, record: int) -> bytes:
        """Return the member's bytes, unpacked and checked."""
        size = int(self.image_sizes[record])
        if size > _MAX_IMAGE_BYTES:
            raise Unreadable(f"too large: {size} bytes, an image has at most {_MAX_IMAGE_BYTES}")
        packed = self._packed(record)
        image = packed if self.methods[record] == ZIP_STORED else _inflate(packed, size)
        if len(image) != size or zlib.crc32(image) != self.checksums[record]:
            raise Unreadable("damaged: its bytes have not the length or the checksum that the archive promises")
        return image

    def _packed(self, record: int) -> bytes:
        start = int(self.offsets[record])
        signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(self.slice(record, start, _LOCAL_HEADER.size))
        data = self.slice(record, start + _LOCAL_HEADER.size, name_bytes + extra_bytes + int(self.sizes[record]))
        if signature != b"PK\3\4" or zlib.crc32(data[:name_bytes]) != self.name_checksums[record]:
            raise Unreadable("damaged: it is not where the archive's directory says")
        return data[name_bytes + extra_bytes :]


def _inflate(packed: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj(_RAW_DEFLATE).decompress(packed, size + 1)
    except zlib.error as error:
        raise Unreadable(f"damaged: {error}") from None


def open_zip(path: Path) -> ZipSource:
    """List the images in a zip archive, or in all archives below a folder as if unpacked into one.

    Names, order and identities are those of the unpacked folder. Raises `DataError` for an archive that
    is damaged, holds a name twice, or is packed in a way that is not read here.
    """
    archives = files_of(path, ".zip")
    ignored: list[str] = []
    names: list[str] = []
    entries: list[npt.NDArray[np.void]] = []
    for number, archive in enumerate(archives):
        members, archive_bytes = _directory(archive), archive.stat().st_size
        images = [member for member in members if is_image(member.filename)]
        ignored += [member.filename for member in members if not is_image(member.filename)]
        names += [member.filename for member in images]
        entries.append(np.array([_entry(archive, archive_bytes, number, member) for member in images], _ENTRY))
    if not names:
        raise DataError(no_images(path, len(ignored)))
    order = sorted(range(len(names)), key=lambda row: _as_walked(names[row]))
    rows, names = np.concatenate(entries)[order], [names[row] for row in order]
    _refuse_repeats(names, [archives[number] for number in rows["file_numbers"]])
    identities, labels = number_identities(map(folder_identity, names))
    columns: dict[str, Any] = {name: rows[name].copy() for name in _ENTRY.names or ()}
    return ZipSource(
        identities=identities, labels=labels, ignored=ignored, archives=archives, paths=text(names, path), **columns
    )


def _entry(archive: Path, archive_bytes: int, number: int, member: ZipInfo) -> tuple[int, ...]:
    """Return what is kept of a directory entry; raise `DataError` for one that cannot be read."""
    name = f"{archive}: {member.filename[:200]!r}"
    if member.flag_bits & _ENCRYPTED or member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        how = "encrypted" if member.flag_bits & _ENCRYPTED else f"packed by method {member.compress_type}"
        raise DataError(f"{name} is {how}; unpack the archive and give the folder")
    end = member.header_offset + _LOCAL_HEADER.size + member.compress_size
    if member.header_offset < 0 or end > archive_bytes:
        raise DataError(f"{name} would end at byte {end} of {archive_bytes}; copy the archive again")
    local_name = member.orig_filename.encode("utf-8" if member.flag_bits & _UTF8_NAME else "cp437")
    sizes = (member.compress_size, min(member.file_size, sys.maxsize))
    return (number, member.header_offset, *sizes, member.CRC, zlib.crc32(local_name), member.compress_type)


def _directory(archive: Path) -> list[ZipInfo]:
    """Return the visible files of an archive; raise `DataError` when its directory is not whole."""
    try:
        with archive.open("rb") as stream, ZipFile(stream) as opened:
            members = opened.infolist()
            promised = _promised_count(stream)
    except (BadZipFile, NotImplementedError, ValueError, struct.error, OverflowError, OSError) as error:
        raise DataError(f"{archive} is no whole zip archive ({error}); copy it again") from None
    if (promised - len(members)) % _COUNT_MODULUS:
        raise DataError(f"{archive} promises {promised} members, its directory lists {len(members)}; copy it again")
    return [member for member in members if not _is_hidden(member.filename)]


def _promised_count(stream: BinaryIO) -> int:
    """Return how many members the archive's end counts, which `zipfile` does not compare with what it finds."""
    stream.seek(max(0, stream.seek(0, os.SEEK_END) - _MAX_END_BYTES))
    tail = stream.read()
    at = tail.rfind(b"PK\5\6")
    if tail[at - 76 : at - 72] == b"PK\6\6":  # the zip64 end and its locator stand before the old end
        return int.from_bytes(tail[at - 44 : at - 36], "little")
    return int.from_bytes(tail[at + 10 : at + 12], "little")


def _is_hidden(name: str) -> bool:
    """Tell whether a member is a folder, or hidden, or what macOS adds."""
    parts = [part for part in name.split("/") if part not in (".", "..")]
    return name.endswith("/") or any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _as_walked(name: str) -> tuple[list[str], str]:
    """Return what sorts names as a walk over the unpacked folder meets them: files before subfolders."""
    folder, _, base = name.rpartition("/")
    return folder.split("/") if folder else [], base


def _refuse_repeats(names: Sequence[str], archives: Sequence[Path]) -> None:
    for row, (before, name) in enumerate(pairwise(names)):
        if before == name:
            others = {archives[row].name, archives[row + 1].name} - {archives[row].name}
            raise DataError(
                f"{archives[row]}: {name[:200]!r} is there twice, the second time in {min(others, default='it')}; "
                "give archives that repeat names one by one"
            )
