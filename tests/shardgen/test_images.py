"""What passes here decodes in training: formats, damage, and agreement with DALI."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvidia.dali import fn, pipeline_def, types

from shardgen.images import ImageInfo, Unreadable, check, decode, sniff
from shardgen.procedural import draw_face, encode
from shardgen.recordio import RecordFile, unpack

FACE = draw_face(seed=0, identity=1, image=0)
JPEG = encode(FACE)


def encoded(extension: str, image: npt.NDArray[np.uint8 | np.uint16] = FACE, *flags: int) -> bytes:
    return bytes(cv2.imencode(f".{extension}", image[..., ::-1], flags)[1])


FORMATS = ("jpg", "png", "bmp", "tiff", "webp")
VARIANTS = {
    **{extension: encoded(extension) for extension in FORMATS},
    "progressive": encoded("jpg", FACE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "grey jpg": encoded("jpg", FACE[..., :1]),
    "grey png": encoded("png", FACE[..., :1]),
    "16-bit png": encoded("png", FACE.astype(np.uint16) * 257),
    "16-bit tiff": encoded("tiff", FACE.astype(np.uint16) * 257),
    "png with alpha": encoded("png", np.dstack([FACE[..., :1], FACE])),
    "bytes after the end": JPEG + b"garbage",
}


@pytest.mark.parametrize("extension", FORMATS)
def test_format_and_size_come_from_the_bytes(extension: str) -> None:
    assert sniff(encoded(extension)) == extension
    assert check(encoded(extension, FACE[:, :90])) == ImageInfo(extension, width=90, height=112)


def test_decoding_gives_rgb() -> None:
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 0] = 255
    assert (decode(encoded("png", red)) == red).all()


@settings(deadline=None, max_examples=60)
@given(kept=st.integers(1, len(JPEG) - 1))
def test_a_jpeg_cut_anywhere_is_unreadable(kept: int) -> None:
    with pytest.raises(Unreadable):
        check(JPEG[:kept])


@settings(deadline=None, max_examples=100)
@given(data=st.one_of(st.binary(max_size=40), st.binary(max_size=40).map(JPEG[:20].__add__)))
def test_bytes_that_are_no_image_are_unreadable(data: bytes) -> None:
    with pytest.raises(Unreadable):
        check(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"GIF89a......", "not an image"), (b"<html>", "not an image"), (JPEG[:200], "does not decode")],
)
def test_the_reason_says_what_is_wrong(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=f"^{reason}: "):
        check(data)


@pipeline_def(batch_size=1, num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
def decoding(image: npt.NDArray[np.uint8]) -> object:
    source = fn.external_source(source=lambda: [image], batch=True, dtype=types.UINT8, ndim=1)
    return fn.decoders.image(source, device="cpu", output_type=types.RGB)


def size_in_dali(data: bytes) -> tuple[int, int]:
    """Return (width, height) as DALI decodes it."""
    pipe = decoding(np.frombuffer(data, np.uint8))
    pipe.build()
    height, width, channels = pipe.run()[0].at(0).shape
    assert channels == 3
    return width, height


@pytest.mark.parametrize("variant", VARIANTS)
def test_dali_decodes_what_passes(variant: str) -> None:
    info = check(VARIANTS[variant])
    assert size_in_dali(VARIANTS[variant]) == (info.width, info.height)


def test_dali_decodes_the_odd_records_that_pass(real_faces: Path) -> None:
    file = RecordFile(real_faces / "odd_records" / "train.rec")
    passed = 0
    for offset in file.scan().tolist():
        data = unpack(file.payload(offset)).image
        try:
            info = check(data)
        except Unreadable:
            continue
        assert size_in_dali(data) == (info.width, info.height)
        passed += 1
    assert passed == 8
