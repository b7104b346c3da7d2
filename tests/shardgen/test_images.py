"""What passes here decodes in training: formats, damage, and agreement with DALI."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvidia.dali import fn, pipeline_def, types
from PIL import Image

from shardgen.align import TEMPLATE, Landmarks
from shardgen.images import Header, ImageOptions, Unreadable, check, decode, prepare, read_header, sniff
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
    assert check(encoded(extension, FACE[:, :90])) == Header(extension, width=90, height=112)


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
    [
        (b"", "empty"),
        (b"GIF89a......", "not an image"),
        (b"<html>", "not an image"),
        (JPEG[:200], "does not decode"),
        (JPEG.replace(b"\x00p\x00p\x03", b"\x00p\x00p\x62"), "does not decode: its header promises 98"),
    ],
)
def test_the_reason_says_what_is_wrong(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=f"^{reason}[: ]"):
        check(data)


@pipeline_def(batch_size=1, num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
def decoding(image: npt.NDArray[np.uint8]) -> object:
    source = fn.external_source(source=lambda: [image], batch=True, dtype=types.UINT8, ndim=1)
    return fn.decoders.image(source, device="cpu", output_type=types.RGB)


def in_dali(data: bytes) -> npt.NDArray[np.uint8]:
    """Return the image as DALI decodes it."""
    pipe = decoding(np.frombuffer(data, np.uint8))
    pipe.build()
    return np.array(pipe.run()[0].at(0))


def size_in_dali(data: bytes) -> tuple[int, int]:
    """Return (width, height) as DALI decodes it."""
    height, width, channels = in_dali(data).shape
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


def saved(form: str, image: Image.Image | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    (image or Image.fromarray(FACE[:, :90])).save(stream, form, **options)
    return stream.getvalue()


def sideways(orientation: int, form: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(form, exif=exif, quality=95)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_what_passes_decodes_in_dali_whatever_bytes_are_damaged(data: st.DataObject) -> None:
    original = data.draw(st.sampled_from([JPEG, VARIANTS["progressive"], VARIANTS["png"], sideways(6)]))
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(2, min(700, len(original) - 1)))] = data.draw(st.integers(0, 255))
    try:
        info = check(bytes(damaged))
    except Unreadable:
        return
    # Which side is up in damaged metadata is anybody's guess; what counts is that no batch is lost.
    assert sorted(size_in_dali(bytes(damaged))) == sorted([info.width, info.height])


def test_one_image_s_header_is_never_taken_for_another_s() -> None:
    for height in (112, 64, 112, 80, 80):
        header = read_header(encode(draw_face(0, 0, 0)[:height]))
        assert (header.extension, header.width, header.height) == ("jpg", 112, height)


@pytest.mark.parametrize("check_of", ["decode", "header", "none"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_bytes_stay_as_they_are_unless_something_else_was_asked_for(variant: str, check_of: Any) -> None:
    prepared = prepare(VARIANTS[variant], ImageOptions(check=check_of))
    assert prepared.data == VARIANTS[variant]
    assert prepared.edits == ()
    looked = (112, 112) if check_of != "none" else (0, 0)
    assert (prepared.width, prepared.height) == looked


def test_what_is_not_decoded_is_not_found_damaged() -> None:
    cut = JPEG[:-200]
    assert prepare(cut, ImageOptions(check="header")).data == cut
    with pytest.raises(Unreadable, match="does not decode"):
        prepare(cut, ImageOptions(check="decode"))
    with pytest.raises(Unreadable, match="does not decode"):
        prepare(JPEG[:100], ImageOptions(check="header"))
    assert prepare(JPEG[:100], ImageOptions(check="none")).data == JPEG[:100]


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sideways_images_are_turned_upright_as_pillow_would(orientation: int, form: str) -> None:
    data = sideways(orientation, form)
    prepared = prepare(data, ImageOptions())
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(orientation)
        upright = np.asarray(image if turned is None else image.transpose(Image.Transpose(turned)))
    assert (prepared.height, prepared.width) == upright.shape[:2]
    assert np.abs(decode(prepared.data).astype(int) - upright).mean() < (4 if form == "JPEG" else 0.01)
    assert prepared.edits == (() if orientation == 1 else ("turned upright",))
    with Image.open(io.BytesIO(prepared.data)) as again:
        assert again.getexif().get(0x0112, 1) == 1
    if orientation != 1:
        with pytest.raises(Unreadable, match=f"its EXIF orientation is {orientation}"):
            prepare(data, ImageOptions(exif="refuse"))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_damaged_exif_directory_is_taken_for_none(order: str) -> None:
    mark = b"II" if order == "<" else b"MM"
    bad = [
        struct.pack(f"{order}2sHI", mark, 42, 9999),
        struct.pack(f"{order}2sHIHHHIH", mark, 42, 8, 9, 0x0112, 3, 1, 77),
    ]
    for tiff in bad:
        segment = b"Exif\0\0" + tiff
        data = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + JPEG[2:]
        assert prepare(data, ImageOptions()).data == data


def test_cmyk_and_16_bit_images_stay_as_they_are_and_opencv_and_dali_agree_on_them() -> None:
    deep = np.random.default_rng(0).integers(0, 1 << 16, (30, 40, 3)).astype(np.uint16)
    for data in (saved("JPEG", Image.fromarray(FACE).convert("CMYK"), quality=95), encoded("png", deep)):
        assert prepare(data, ImageOptions()).data == data
        assert np.abs(decode(data).astype(int) - in_dali(data)).max() <= 1


def test_dali_decodes_an_extended_webp_once_it_is_made_plain() -> None:
    image = Image.fromarray(FACE).convert("RGBA")
    exif = Image.Exif()
    exif[0x010F] = "maker"
    data = saved("WEBP", image, lossless=True, exif=exif)
    assert data[12:16] == b"VP8X"
    prepared = prepare(data, ImageOptions())
    assert (prepared.extension, prepared.edits) == ("png", ("WebP made plain",))
    assert (in_dali(prepared.data) == FACE).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_more_pixels_than_allowed_are_refused_before_decoding(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(form, Image.new("RGB", (300, 200)))

    def decoded(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(cv2, "imdecode", decoded)
    with pytest.raises(Unreadable, match="too large: 300x200 pixels, --max-pixels is 59999"):
        prepare(data, ImageOptions(max_pixels=59_999))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("side", [10_000, 1_000_000])
def test_a_bomb_of_a_few_bytes_is_refused(side: int) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    with pytest.raises(Unreadable, match="too large"):
        check(bomb)


@pytest.mark.parametrize(("form", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("BMP", "png")])
def test_a_size_scales_what_differs_and_leaves_the_rest(form: str, extension: str) -> None:
    wide = saved(form)
    prepared = prepare(wide, ImageOptions(size=64))
    assert (prepared.extension, prepared.width, prepared.height) == (extension, 64, 64)
    assert prepared.edits == ("resized",)
    assert decode(prepared.data).shape == (64, 64, 3)
    fits = saved(form, Image.fromarray(FACE))
    assert prepare(fits, ImageOptions(size=112)).data == fits


def test_aligning_puts_the_landmarks_where_the_template_has_them() -> None:
    turn = np.array([[0.8, -0.5], [0.5, 0.8]])
    landmarks: Landmarks = TEMPLATE @ turn.T + [40, 10]
    canvas = np.zeros((220, 220, 3), np.uint8)
    for x, y in landmarks:
        cv2.circle(canvas, (round(x), round(y)), 3, (255, 255, 255), -1)
    prepared = prepare(encoded("png", canvas), ImageOptions(), landmarks)
    aligned = decode(prepared.data)
    assert prepared.edits == ("aligned",)
    assert aligned.shape == (112, 112, 3)
    for x, y in TEMPLATE.round().astype(int):
        assert aligned[y, x].min() > 128
