"""The quality that encoders were asked for comes back from their files."""

import io
import struct
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shardgen.procedural import draw_face
from shardgen.quality import jpeg_quality

FACE = draw_face(0, 0, 0)


def by_pillow(quality: int = -1, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(FACE).save(stream, "JPEG", quality=quality, **options)
    return stream.getvalue()


def by_opencv(quality: int, *options: int) -> bytes:
    return bytes(cv2.imencode(".jpg", FACE[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality, *options])[1])


def segments_of(jpeg: bytes, marker: int) -> list[bytes]:
    """Return what stands in the segments of a kind before the scan."""
    found, at = [], 2
    while jpeg[at + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", jpeg, at + 2)
        if jpeg[at + 1] == marker:
            found.append(jpeg[at + 4 : at + 2 + length])
        at += 2 + length
    return found


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def ijg_tables(quality: int) -> list[list[int]]:
    """Return both tables as Pillow makes them at a quality, in natural order."""
    with Image.open(io.BytesIO(by_pillow(quality))) as image:
        return list(image.quantization.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize("quality", range(1, 101))
def test_every_quality_of_two_encoders_comes_back(quality: int) -> None:
    assert jpeg_quality(by_pillow(quality)) == quality
    assert jpeg_quality(by_opencv(quality)) == quality


@pytest.mark.parametrize("quality", [5, 50, 77, 100])
def test_other_ways_to_encode_change_nothing(quality: int) -> None:
    assert jpeg_quality(by_pillow(quality, progressive=True, optimize=True)) == quality
    assert jpeg_quality(by_pillow(quality, subsampling=0, comment=b"\xff\xdb" * 40)) == quality
    assert jpeg_quality(by_opencv(quality, cv2.IMWRITE_JPEG_RST_INTERVAL, 1)) == quality
    grey = io.BytesIO()
    Image.fromarray(FACE).convert("L").save(grey, "JPEG", quality=quality)
    assert jpeg_quality(grey.getvalue()) == quality


@pytest.mark.parametrize("quality", range(1, 24))
def test_tables_of_16_bits_keep_the_values_that_others_clip(quality: int) -> None:
    base = np.array(ijg_tables(50))
    scaled = np.clip((base * (5000 // quality) + 50) // 100, 1, 32767).tolist()
    wide = by_pillow(qtables=scaled)
    assert segments_of(wide, 0xDB)[0][0] >> 4 == 1  # the encoder did write 16 bits
    assert jpeg_quality(wide) == quality


def test_the_luminance_table_is_found_among_several_in_one_segment() -> None:
    jpeg = by_pillow(63)
    luminance, chrominance = segments_of(jpeg, 0xDB)
    for both in (luminance + chrominance, chrominance + luminance):
        assert jpeg_quality(b"\xff\xd8" + segment(0xDB, both) + jpeg[-2:]) == 63


def test_a_thumbnail_in_the_metadata_does_not_count() -> None:
    jpeg = by_pillow(90)
    assert jpeg_quality(jpeg[:2] + segment(0xE1, b"Exif\0\0" + by_pillow(20)) + jpeg[2:]) == 90


def test_markers_may_be_filled_up_and_stand_alone() -> None:
    jpeg = by_pillow(40)
    assert jpeg_quality(jpeg[:2] + b"\xff\x01\xff\xff\xff" + jpeg[2:]) == 40


def test_a_table_of_another_make_gets_the_nearest_quality() -> None:
    table = np.array(ijg_tables(80)[0])
    table[::7] += 1
    assert jpeg_quality(by_pillow(qtables=[table.tolist()])) == 80


def test_the_head_is_enough() -> None:
    jpeg = by_pillow(85)
    end = jpeg.index(segments_of(jpeg, 0xDB)[0]) + 65
    assert jpeg_quality(jpeg[:end]) == 85
    assert jpeg_quality(jpeg[: end - 1]) is None


@pytest.mark.parametrize("extension", [".png", ".webp", ".bmp", ".tiff"])
def test_other_formats_have_none(extension: str) -> None:
    assert jpeg_quality(bytes(cv2.imencode(extension, FACE)[1])) is None


@given(st.binary(max_size=200), st.integers(0, 700))
def test_damaged_bytes_give_none_or_a_quality(noise: bytes, at: int) -> None:
    jpeg = by_opencv(75)
    for data in (noise, b"\xff\xd8" + noise, jpeg[:at] + noise + jpeg[at:]):
        quality = jpeg_quality(data)
        assert quality is None or 1 <= quality <= 100


def test_real_photographs_agree_with_pillow_on_the_table(real_faces: Path) -> None:
    seen: Counter[int | None] = Counter()
    for path in sorted((real_faces / "standin").rglob("*.jpg"))[:200]:
        quality = jpeg_quality(path.read_bytes())
        with Image.open(path) as image:
            assert image.quantization[0] == ijg_tables(quality or 0)[0]  # type: ignore[attr-defined]
        seen[quality] += 1
    assert len(seen) > 5  # they were saved at many
