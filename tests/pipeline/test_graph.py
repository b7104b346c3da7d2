"""The DALI graph: what it decodes is what OpenCV decodes; flips and sizes are what was asked for."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.graph import GraphOptions, Inputs, decoded
from pipeline.reader import Encoded
from shardgen.procedural import draw_face

LEVEL = 1 / 127.5
"""One of the 256 levels of a pixel, in a batch's units."""


def options(**given: Any) -> GraphOptions:
    defaults: dict[str, Any] = {
        "max_batch_size": 16,
        "image_size": 112,
        "resize": False,
        "device": torch.device("cpu"),
        "threads": 2,
        "prefetch": 2,
    }
    return GraphOptions(**defaults | given)


def batch_of(encoded: Sequence[Encoded], flip: Sequence[int] | None = None, **given: Any) -> torch.Tensor:
    inputs: Inputs = (list(encoded), np.array(flip or [0] * len(encoded), np.int32))
    (images,) = decoded(iter([inputs]), options(**given))
    return images


def opencv(encoded: Encoded) -> torch.Tensor:
    """Return `[3, height, width]` RGB in [-1, 1]."""
    rgb = cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return (torch.from_numpy(rgb).permute(2, 0, 1).float() - 127.5) / 127.5


def load(paths: Sequence[Path]) -> list[Encoded]:
    return [np.frombuffer(path.read_bytes(), np.uint8) for path in paths]


def drawn(number: int, extension: str = ".jpg", *parameters: int) -> Encoded:
    bgr = draw_face(0, number, 0)[..., ::-1]
    done, data = cv2.imencode(extension, np.ascontiguousarray(bgr), list(parameters))
    assert done
    encoded: Encoded = data
    return encoded


@pytest.fixture(scope="module")
def photographs(real_faces: Path) -> list[Encoded]:
    """16 of 200x200 pixels."""
    return load(sorted((real_faces / "utkface" / "images").iterdir())[::90][:16])


@pytest.fixture(scope="module")
def standins(real_faces: Path) -> list[Encoded]:
    """16 of 112x112 pixels."""
    return load(sorted((real_faces / "standin" / "images").glob("*/*"))[::150][:16])


@pytest.mark.parametrize(("faces", "size"), [("photographs", 200), ("standins", 112)])
def test_real_faces_are_decoded_as_opencv_decodes_them(faces: str, size: int, request: pytest.FixtureRequest) -> None:
    encoded: list[Encoded] = request.getfixturevalue(faces)
    difference = (batch_of(encoded, image_size=size) - torch.stack([opencv(face) for face in encoded])).abs()
    assert difference.max() < 1.01 * LEVEL  # JPEG decoders may round differently
    assert difference.mean() < 0.02 * LEVEL


@pytest.mark.parametrize(
    ("extension", "parameters"),
    [
        (".png", ()),
        (".bmp", ()),
        (".webp", (cv2.IMWRITE_WEBP_QUALITY, 90)),
        (".tiff", ()),
        (".jpg", (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
        (".jpg", (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)),
    ],
)
def test_every_format_that_shards_may_hold_is_decoded(extension: str, parameters: tuple[int, ...]) -> None:
    encoded = [drawn(number, extension, *parameters) for number in range(3)]
    expected = torch.stack([opencv(face) for face in encoded])
    torch.testing.assert_close(batch_of(encoded), expected, rtol=0, atol=1.01 * LEVEL)


def test_a_grey_image_has_three_equal_channels() -> None:
    done, grey = cv2.imencode(".jpg", cv2.cvtColor(draw_face(0, 0, 0), cv2.COLOR_RGB2GRAY))
    assert done
    (image,) = batch_of([grey])
    torch.testing.assert_close(image, opencv(grey), rtol=0, atol=1.01 * LEVEL)
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])


def test_a_batch_is_nchw_in_channels_last_memory_and_lies_between_minus_1_and_1() -> None:
    images = batch_of([drawn(number) for number in range(5)])
    assert images.shape == (5, 3, 112, 112)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert not images.is_contiguous()
    black, white = (cv2.imencode(".png", np.full((112, 112, 3), level, np.uint8))[1] for level in (0, 255))
    assert set(batch_of([black, white]).flatten().tolist()) == {-1, 1}


def test_red_comes_first() -> None:
    bgr = np.zeros((112, 112, 3), np.uint8)
    bgr[..., 2] = 255
    (image,) = batch_of([cv2.imencode(".png", bgr)[1]])
    assert image.mean((1, 2)).tolist() == [1, -1, -1]


@pytest.mark.parametrize("resize", [False, True])
def test_a_flipped_image_is_the_exact_mirror(resize: bool) -> None:
    encoded = [drawn(number) for number in range(6)]
    flip = [1, 0, 0, 1, 1, 0]
    plain, flipped = batch_of(encoded, resize=resize), batch_of(encoded, flip, resize=resize)
    for one, other, mirrored in zip(plain, flipped, flip, strict=True):
        assert torch.equal(other, one.flip(2) if mirrored else one)
        assert not torch.equal(one, one.flip(2))


@pytest.mark.parametrize("size", [64, 112, 224])
def test_images_of_another_size_are_resized(photographs: list[Encoded], size: int) -> None:
    whole = torch.stack([opencv(face) for face in photographs])
    expected = functional.interpolate(whole, (size, size), mode="bilinear", antialias=True)
    images = batch_of(photographs, image_size=size, resize=True)
    assert images.shape[2:] == (size, size)
    difference = (images - expected).abs()
    assert difference[..., 1:-1, 1:-1].max() < 1.01 * LEVEL
    assert difference.mean() < 0.3 * LEVEL  # torch shortens the filter at the border, DALI repeats the border


def test_an_image_that_is_not_square_becomes_square() -> None:
    wide = draw_face(0, 1, 0)[20:90]
    encoded: Encoded = cv2.imencode(".png", np.ascontiguousarray(wide))[1]
    expected = functional.interpolate(opencv(encoded)[None], (112, 112), mode="bilinear", antialias=True)
    difference = (batch_of([encoded], resize=True) - expected).abs()
    assert difference[..., 1:-1, 1:-1].max() < 1.01 * LEVEL


def test_an_image_of_the_right_size_is_not_changed_by_others(photographs: list[Encoded]) -> None:
    right = [drawn(number) for number in range(3)]
    mixed = batch_of([right[0], photographs[0], right[1], photographs[1], right[2]], resize=True)
    assert torch.equal(mixed[::2], batch_of(right, resize=False))


@pytest.mark.parametrize("prefetch", [1, 2, 5])
@pytest.mark.parametrize("num_batches", [0, 1, 7])
def test_every_input_comes_out_once_and_in_order(num_batches: int, prefetch: int) -> None:
    encoded = [drawn(number) for number in range(3 * num_batches + 1)]
    starts = range(0, 3 * num_batches, 3)
    inputs = [(encoded[start : start + 3], np.zeros(3, np.int32)) for start in starts]
    if inputs:
        inputs[-1] = (encoded[-2:], np.array([1, 0], np.int32))  # a last batch that is short
    batches = list(decoded(iter(inputs), options(max_batch_size=3, prefetch=prefetch)))
    assert len(batches) == num_batches
    for batch, (faces, flip) in zip(batches, inputs, strict=True):
        assert torch.equal(batch, batch_of(faces, flip.tolist()))


@pytest.mark.parametrize("prefetch", [1, 3])
def test_inputs_are_asked_for_no_further_ahead_than_prefetch(prefetch: int) -> None:
    asked = 0

    def inputs() -> Iterator[Inputs]:
        nonlocal asked
        for number in range(12):
            asked += 1
            yield [drawn(number)], np.zeros(1, np.int32)

    for came_out, _ in enumerate(decoded(inputs(), options(prefetch=prefetch))):
        assert asked <= came_out + prefetch


def test_a_batch_stays_valid_after_the_next_ones_and_after_the_end() -> None:
    encoded = [drawn(number) for number in range(20)]
    inputs = iter([([face], np.zeros(1, np.int32)) for face in encoded])
    held = [(batch, batch.clone()) for batch in decoded(inputs, options(max_batch_size=1))]
    assert len({batch.data_ptr() for batch, _ in held}) == 20
    assert all(torch.equal(batch, as_it_came) for batch, as_it_came in held)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_a_batch(threads: int) -> None:
    encoded = [drawn(number) for number in range(9)]
    assert torch.equal(batch_of(encoded, threads=threads), batch_of(encoded))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [112, 200])
def test_the_gpu_makes_what_the_cpu_makes(photographs: list[Encoded], size: int) -> None:
    flip = [0, 1] * 8
    given: dict[str, Any] = {"image_size": size, "resize": True}
    on_gpu = batch_of(photographs, flip, device=torch.device("cuda", 0), **given)
    assert on_gpu.device == torch.device("cuda", 0)
    assert on_gpu.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(on_gpu.cpu(), batch_of(photographs, flip, **given), rtol=0, atol=1e-5)
