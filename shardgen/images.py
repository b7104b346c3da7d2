"""Image bytes: what format they are, whether they decode, and what is made of them where bytes must change.

OpenCV and DALI agree on what decodes (both refuse a truncated JPEG), so a record that passes here
cannot lose a training run its batch later. Checking a JPEG decodes every coded bit of it, but at an
eighth of the size and in gray: what is left out, inverse transform and colour, cannot fail.
"""

import struct
import warnings
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from shardgen.align import Landmarks, align

Rgb = npt.NDArray[np.uint8]
Check = Literal["decode", "header", "none"]
MAX_PIXELS = 1 << 26

# What DALI decodes too; GIF, for one, it does not.
_SIGNATURES = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
)
EXTENSIONS = frozenset({"jpg", "jpeg", "jpe", "png", "bmp", "tif", "tiff", "webp"})
_ORIENTATION = 0x0112
_UPRIGHT = 1
_START_OF_SCAN = 0xDA
_APP1 = 0xE1
_COMPONENTS = frozenset({1, 3, 4})  # grey, YCbCr or RGB, CMYK or YCCK
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEGMENTS = _FRAMES | frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0), _START_OF_SCAN})
_EIGHTH_IN_GRAY = cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_IGNORE_ORIENTATION


class Unreadable(ValueError):
    """This record cannot become a sample; the text is the reason that `rejected.csv` gives."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an image says of itself before it is decoded; sizes in pixels, upright."""

    extension: str
    width: int
    height: int
    orientation: int = _UPRIGHT
    """EXIF's 1 to 8."""
    colours: int = 3
    """Components of a JPEG."""


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """What a conversion does with image bytes."""

    check: Check = "decode"
    size: int | None = None
    quality: int = 95
    exif: Literal["apply", "refuse"] = "apply"
    max_pixels: int = MAX_PIXELS


class Prepared(NamedTuple):
    """An image as it goes into a shard; sizes in pixels, 0 where nobody looked."""

    data: bytes
    extension: str
    width: int
    height: int
    edits: tuple[str, ...] = ()
    """Why the bytes are not the source's."""


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


def read_header(data: bytes) -> Header:
    """Return what the image says of itself; raise `Unreadable` when its header is damaged."""
    for content, header in _last_jpeg:
        if data.startswith(content):
            return header
    extension = sniff(data)
    return _jpeg_header(data) if extension == "jpg" else _other_header(data, extension)


def _jpeg_header(data: bytes) -> Header:
    header, end = _walk_jpeg(data)
    _last_jpeg[:] = [(data[:end], header)]
    return header


_last_jpeg: list[tuple[bytes, Header]] = []
"""The last header that was walked: images of one encoder often share theirs byte for byte."""


def _walk_jpeg(data: bytes) -> tuple[Header, int]:
    """Walk the segments to the first scan (ITU-T T.81, B.1.1) and return where that begins, too.

    Anything odd between segments is damage, as it is for DALI.
    """
    at, size, orientation = 2, None, _UPRIGHT
    try:
        while True:
            marker = data[at + 1]
            if data[at] != 0xFF or marker not in _SEGMENTS:
                raise Unreadable(f"does not decode: no JPEG segment starts at byte {at} of its header")
            if marker == _START_OF_SCAN:
                break
            if marker in _FRAMES:
                size = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8], data[at + 9]
            elif marker == _APP1 and data[at + 4 : at + 10] == b"Exif\x00\x00":
                orientation = _exif_orientation(data[at + 10 : at + 2 + (data[at + 2] << 8 | data[at + 3])])
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    except IndexError:
        raise Unreadable(f"does not decode: {len(data)} bytes end inside its header") from None
    if size is None or not size[0] or not size[1]:
        raise Unreadable("does not decode: its header gives no size")
    if size[2] not in _COMPONENTS:
        raise Unreadable(f"does not decode: its header promises {size[2]} colour components")
    return Header("jpg", *_turned(size[1], size[0], orientation), orientation, size[2]), at + 2


def _turned(width: int, height: int, orientation: int) -> tuple[int, int]:
    return (height, width) if orientation > 4 else (width, height)


def _exif_orientation(tiff: bytes) -> int:
    """Return the orientation that a TIFF structure's first directory gives (EXIF 2.3, 4.6.4), 1 without one."""
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        entries = range(start + 2, start + 2 + 12 * count, 12)
        for entry in entries if entries.stop <= len(tiff) else ():
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == _ORIENTATION:  # of whatever type, as for DALI
                return value if 1 <= value <= 8 else _UPRIGHT
    except struct.error:
        pass  # OpenCV and DALI take a damaged directory for none
    return _UPRIGHT


def _other_header(data: bytes, extension: str) -> Header:
    orientation = _UPRIGHT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes, which are checked against the limit, and of odd metadata
        try:
            with Image.open(BytesIO(data)) as image:
                width, height = image.size
                with suppress(Exception):  # a damaged file can make Pillow raise nearly anything
                    orientation = image.getexif().get(_ORIENTATION, _UPRIGHT) if extension != "tiff" else _UPRIGHT
        except Image.DecompressionBombError:
            raise Unreadable(f"too large: more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels") from None
        except Exception:  # whose text may say where in memory the file was
            raise Unreadable(f"does not decode: its {extension} header is damaged") from None
    known = orientation if orientation in range(1, 9) else _UPRIGHT
    return Header(extension, *_turned(width, height, known), known)


def _decode_bgr(data: bytes, flags: int = cv2.IMREAD_COLOR) -> npt.NDArray[np.uint8]:
    try:
        bgr: npt.NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise Unreadable(f"does not decode: {error.err}") from None
    if bgr is None:
        raise Unreadable(f"does not decode: {len(data)} bytes, truncated or damaged")
    return bgr


def decode(data: bytes) -> Rgb:
    """Return `[height, width, 3] uint8` in RGB order, upright; raise `Unreadable` when it does not decode."""
    return np.ascontiguousarray(_decode_bgr(data)[..., ::-1])


def check(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Decode every bit of the image and return its header; raise `Unreadable` with the reason."""
    return _check_bits(data, _bounded(read_header(data), max_pixels))


def _check_bits(data: bytes, header: Header) -> Header:
    is_colour_jpeg = header.extension == "jpg" and header.colours == 3
    _decode_bgr(data, _EIGHTH_IN_GRAY if is_colour_jpeg else cv2.IMREAD_COLOR)
    return header


def _bounded(header: Header, max_pixels: int) -> Header:
    if header.width * header.height > max_pixels:
        raise Unreadable(f"too large: {header.width}x{header.height} pixels, --max-pixels is {max_pixels}")
    return header


def prepare(data: bytes, options: ImageOptions, landmarks: Landmarks | None = None) -> Prepared:
    """Check an image and change it where that is asked for; raise `Unreadable` with the reason.

    Bytes stay as they are unless the image is aligned by `landmarks` (in pixels of the upright image),
    has another size than asked for, is stored sideways, or is of a kind that DALI does not decode.
    """
    if landmarks is not None and np.isnan(landmarks).any():
        raise Unreadable("no landmarks: the table has none for it, or not all five")
    if options.check == "none" and options.size is None and landmarks is None:
        return Prepared(data, sniff(data), 0, 0)
    header = _bounded(read_header(data), options.max_pixels)
    edits = _edits(data, header, options, landmarks)
    if edits:
        return _edited(data, header.extension, edits, options, landmarks)
    if options.check == "decode":
        _check_bits(data, header)
    return Prepared(data, header.extension, header.width, header.height)


def _edits(data: bytes, header: Header, options: ImageOptions, landmarks: Landmarks | None) -> tuple[str, ...]:
    if header.orientation != _UPRIGHT and options.exif == "refuse":
        raise Unreadable(f"sideways: its EXIF orientation is {header.orientation}; --exif apply turns it")
    edits = []
    if landmarks is not None:
        edits.append("aligned")
    if header.orientation != _UPRIGHT:
        edits.append("turned upright")
    if landmarks is None and options.size is not None and (header.width, header.height) != (options.size,) * 2:
        edits.append("resized")
    if header.extension == "webp" and data[12:16] == b"VP8X":  # DALI 2.4 fails on it
        edits.append("WebP made plain")
    return tuple(edits)


def _edited(
    data: bytes, extension: str, edits: tuple[str, ...], options: ImageOptions, landmarks: Landmarks | None
) -> Prepared:
    bgr = _decode_bgr(data)
    if landmarks is not None:
        bgr = align(bgr, landmarks, options.size or 112)
    elif options.size is not None and bgr.shape[:2] != (options.size, options.size):
        shrinks = options.size < min(bgr.shape[:2])
        bgr = np.asarray(
            cv2.resize(
                bgr, (options.size, options.size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            ),
            np.uint8,
        )
    kind = "jpg" if extension == "jpg" else "png"
    encoded, content = cv2.imencode(
        f".{kind}", bgr, [cv2.IMWRITE_JPEG_QUALITY, options.quality] if kind == "jpg" else []
    )
    assert encoded
    return Prepared(content.tobytes(), kind, bgr.shape[1], bgr.shape[0], edits)
