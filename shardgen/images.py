"""Image bytes: what format they are, and whether they decode.

OpenCV and DALI agree on what decodes (both refuse a truncated JPEG), so a record that passes here
cannot lose a training run its batch later.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Rgb = npt.NDArray[np.uint8]

# What DALI decodes too; GIF, for one, it does not.
_SIGNATURES = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
)
EXTENSIONS = frozenset({"jpg", "jpeg", "jpe", "png", "bmp", "tif", "tiff", "webp"})


class Unreadable(ValueError):
    """This record cannot become a sample; the text is the reason that `rejected.csv` gives."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What checking an image tells about it; sizes in pixels, as decoded."""

    extension: str
    width: int
    height: int


def sniff(data: bytes) -> str:
    """Return the extension that fits the bytes; raise `Unreadable` when they are no known image."""
    if not data:
        raise Unreadable("empty: the record holds no image bytes")
    for signature, extension in _SIGNATURES:
        if data.startswith(signature):
            return extension
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise Unreadable(f"not an image: {len(data)} bytes that start with {data[:8]!r}")


def _decode_bgr(data: bytes) -> npt.NDArray[np.uint8]:
    try:
        bgr: npt.NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise Unreadable(f"does not decode: {error.err}") from None
    if bgr is None:
        raise Unreadable(f"does not decode: {len(data)} bytes, truncated or damaged")
    return bgr


def decode(data: bytes) -> Rgb:
    """Return `[height, width, 3] uint8` in RGB order; raise `Unreadable` when it does not decode."""
    return np.ascontiguousarray(_decode_bgr(data)[..., ::-1])


def check(data: bytes) -> ImageInfo:
    """Decode the image fully and return its format and size; raise `Unreadable` with the reason."""
    extension = sniff(data)
    height, width = _decode_bgr(data).shape[:2]
    return ImageInfo(extension, width, height)
