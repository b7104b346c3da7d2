"""Deterministic USTAR bytes and DALI's index of them, in one pass.

A header is a key, a checksum, and what two members of one extension and size have in common; that is
kept, which is what makes this far faster than the `tarfile` module. Owner and time are zero, so the
same members always give the same bytes. Format: POSIX.1-1988 ustar. Index: version 1.2, as DALI's own
`wds2idx` writes it.
"""

from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Protocol

BLOCK_BYTES = 512
END_OF_ARCHIVE = bytes(2 * BLOCK_BYTES)
_NAME_BYTES = 100
_MODE_UID_GID = b"0000644\x000000000\x000000000\x00"
_MTIME = b"00000000000\x00"
_BLANK_CHECKSUM = b" " * 8
_TYPE_TO_END = b"".join([b"0", bytes(100), b"ustar\x0000", bytes(64), b"0000000\x000000000\x00", bytes(155), bytes(12)])
_CONSTANT_SUM = sum(_BLANK_CHECKSUM) + sum(_TYPE_TO_END)
_MAX_MEMBER_BYTES = 8**11
_FLUSH_BYTES = 1 << 20


@lru_cache(1 << 16)
def _around(extension: str, key_bytes: int, size_bytes: int) -> tuple[bytes, int, bytes]:
    """Return what such members share: a header from behind the key to the checksum, the sum of all but the key
    and the checksum itself, and the padding behind the data."""
    name_end = f".{extension}".encode("ascii")
    if key_bytes + len(name_end) > _NAME_BYTES or size_bytes >= _MAX_MEMBER_BYTES:
        raise ValueError(
            f"a member {name_end.decode()} of {size_bytes} bytes, its key of {key_bytes}, does not fit a ustar header"
        )
    fields = b"%b%b%011o\x00%b" % (name_end.ljust(_NAME_BYTES - key_bytes, b"\x00"), _MODE_UID_GID, size_bytes, _MTIME)
    return fields, _CONSTANT_SUM + sum(fields), bytes(-size_bytes % BLOCK_BYTES)


@cache
def _checksum(total: int) -> bytes:
    return b"%06o\x00 " % total


class Stream(Protocol):
    """Where the bytes go."""

    def write(self, data: bytes) -> object:
        """Take all of them."""


class TarWriter:
    """Appends samples to a stream, a megabyte at a time, and keeps the index lines."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._position = 0
        self._pending: list[bytes] = []
        self._flushed = 0
        self._index: list[str] = []

    def add_samples(self, samples: Iterable[tuple[str, str, bytes, bytes]]) -> list[int]:
        """Write samples, each a key, its image's extension, the image and the JSON; return where the images start.

        Keys and extensions are ASCII; raises `ValueError` for a name or a size that a header has no room for.
        """
        position, offsets = self._position, []
        for key, extension, image, text in samples:
            name, image_bytes, text_bytes = key.encode("ascii"), len(image), len(text)
            before_image, image_sum, after_image = _around(extension, len(name), image_bytes)
            before_text, text_sum, after_text = _around("json", len(name), text_bytes)
            name_sum = sum(name)
            self._pending += (
                *(name, before_image, _checksum(name_sum + image_sum), _TYPE_TO_END, image, after_image),
                *(name, before_text, _checksum(name_sum + text_sum), _TYPE_TO_END, text, after_text),
            )
            image_at = position + BLOCK_BYTES
            text_at = image_at + image_bytes + len(after_image) + BLOCK_BYTES
            position = text_at + text_bytes + len(after_text)
            self._index.append(
                f"{extension} {image_at} {image_bytes} {key}.{extension} json {text_at} {text_bytes} {key}.json"
            )
            offsets.append(image_at)
        self._position = position
        if self._position - self._flushed > _FLUSH_BYTES:
            self.flush()
        return offsets

    def flush(self) -> None:
        """Hand on what is held back."""
        self._stream.write(b"".join(self._pending))
        self._pending.clear()
        self._flushed = self._position

    def finish(self) -> bytes:
        """Write the end of the archive and return the index file's bytes."""
        self._pending.append(END_OF_ARCHIVE)
        self.flush()
        return "\n".join([f"v1.2 {len(self._index)}", *self._index, ""]).encode()
