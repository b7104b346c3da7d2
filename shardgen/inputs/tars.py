"""The members of a tar file, each where `tarfile` finds it and the file proves it.

`tarfile` ends at a damaged header as if the archive ended there, believes sizes that point outside the
file or backwards, and reads as much as a header claims; here each of those is an error.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from shardgen.errors import DataError, UsageError
from shardgen.tar import BLOCK_BYTES

_COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".lz4")
_MAX_HEADER_BYTES = 1 << 20  # of a long name or PAX fields; nothing else is read here
_DAMAGE = (tarfile.TarError, ValueError, LookupError, OverflowError, RecursionError, EOFError)


class _HeaderFile(io.FileIO):
    """The file as `tarfile` may see it: no header makes it read back to front or fill the memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return super().read(size) or b""


def members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield every member, in order; raise `DataError` with the byte at which the archive stops being one."""
    if path.name.lower().endswith(_COMPRESSED):
        raise UsageError(f"{path} is compressed, so no record in it can be found; unpack it to a .tar first")
    size_bytes = path.stat().st_size
    with _HeaderFile(path) as stream:
        try:
            archive = tarfile.TarFile(fileobj=stream)
        except _DAMAGE as error:
            raise DataError(f"{path} is no tar file ({error}); copy it again") from None
        while (member := _next(path, archive)) is not None:
            end = member.offset_data + member.size
            if member.size < 0 or end > size_bytes:
                raise DataError(
                    f"{path} byte {member.offset}: {member.name[:200]!r} would end at byte {end} of {size_bytes}; "
                    "copy it again"
                )
            yield member
        _check_end(path, stream, archive.offset, size_bytes)


def _next(path: Path, archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        member = archive.next()
    except _DAMAGE as error:
        raise DataError(f"{path} byte {archive.offset}: no member starts here ({error}); copy it again") from None
    archive.members.clear()  # type: ignore[attr-defined]  # or all headers stay in memory
    return member


def _check_end(path: Path, stream: _HeaderFile, offset: int, size_bytes: int) -> None:
    """Raise `DataError` unless nothing but the zeros that end an archive follow the last member."""
    if offset + BLOCK_BYTES > size_bytes:
        raise DataError(f"{path} is cut: it ends at byte {size_bytes} without an archive's end; copy it again")
    stream.seek(offset)
    while piece := stream.read(_MAX_HEADER_BYTES):
        if found := piece.lstrip(b"\0"):
            at = stream.tell() - len(found)
            raise DataError(f"{path} byte {at}: neither a member nor the archive's end; copy it again")
