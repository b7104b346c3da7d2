"""The quality a JPEG was saved at, told from the head of its bytes alone.

Encoders of the Independent JPEG Group scale one luminance table by the quality; so the table in a file
gives it back. Tables: ITU-T T.81, annex K.1; scaling: `jpeg_quality_scaling` and
`jpeg_add_quant_table` in libjpeg's jcparam.c.
"""

import struct
from functools import lru_cache

import numpy as np

# In the zigzag order of files.
_LUMINANCE = np.fromstring(
    """16 11 12 14 12 10 16 14 13 14 18 17 16 19 24 40 26 24 22 22 24 49 35 37 29 40 58 51 61 60 57 51
    56 55 64 72 92 78 64 68 87 69 55 56 80 109 81 87 95 98 103 104 103 62 77 113 121 112 100 120 92 101 103 99""",
    np.int64,
    sep=" ",
)
_QUALITIES = np.arange(1, 101)
_SCALES = np.where(_QUALITIES < 50, 5000 // _QUALITIES, 200 - 2 * _QUALITIES)  # percent
_TABLES = np.clip((_SCALES[:, None] * _LUMINANCE + 50) // 100, 1, 255)
_STANDALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_START_OF_SCAN, _END_OF_IMAGE, _QUANTISATION_TABLES = 0xDA, 0xD9, 0xDB


def jpeg_quality(data: bytes) -> int | None:
    """Return the IJG quality, 1 to 100, whose luminance table is nearest to that of a JPEG.

    For the IJG's encoders (libjpeg-turbo, so OpenCV and Pillow too) it is the quality that was asked
    for; for tables of another make it is an estimate. None when the bytes are no JPEG or end before
    the table.
    """
    if data[:2] != b"\xff\xd8":
        return None
    try:
        return _find(data)
    except (IndexError, struct.error):
        return None


def _find(data: bytes) -> int | None:
    """Walk from marker to marker: thumbnails inside other segments have tables too, and do not count."""
    at = 2
    while data[at] == 0xFF and (marker := data[at + 1]) not in (_START_OF_SCAN, _END_OF_IMAGE):
        if marker == 0xFF:  # filling
            at += 1
        elif marker in _STANDALONE:
            at += 2
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            if marker == _QUANTISATION_TABLES and (found := _in_segment(data[at + 4 : at + 2 + length])):
                return found
            at += 2 + length
    return None


def _in_segment(tables: bytes) -> int | None:
    """Return the quality of table 0, the luminance by every encoder's habit, if the segment holds it."""
    at = 0
    while at < len(tables):
        wide, number = divmod(tables[at], 16)
        num_bytes = 128 if wide else 64
        if number == 0:
            return _nearest(tables[at + 1 : at + 1 + num_bytes], bool(wide))
        at += 1 + num_bytes
    return None


@lru_cache(maxsize=1024)
def _nearest(table: bytes, wide: bool) -> int:
    """Compare with the table of each quality, all clipped to 255 as in files without tables of 16 bits."""
    values = np.minimum(struct.unpack(">64H" if wide else "64B", table), 255)
    return int(_QUALITIES[np.abs(_TABLES - values).sum(axis=1).argmin()])
