"""The DALI graphs: what OpenCV decodes, in the size asked for and in order; and an error where it does not decode."""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline import reference
from pipeline.augment import draw_steps, possible_ops
from pipeline.augment_config import AugmentConfig
from pipeline.graph import DecodingFailed, GraphOptions, Inputs, augmented, decoded
from pipeline.steps import Steps
from shardgen.errors import DataError
from shardgen.images import decode
from shardgen.procedural import draw_face


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


def batch_of(encoded: Sequence[bytes], **given: Any) -> torch.Tensor:
    (images,) = decoded(iter([Inputs(encoded)]), options(**given))
    return images


def opencv(encoded: bytes) -> torch.Tensor:
    """Return `[height, width, 3] uint8`, RGB."""
    return torch.from_numpy(decode(encoded))


def difference(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return (images.float() - others.float()).abs()


def interpolated(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return `[batch, size, size, 3] float32`."""
    planes = images.permute(0, 3, 1, 2).float()
    return functional.interpolate(planes, (size, size), mode="bilinear", antialias=True).permute(0, 2, 3, 1)


def load(paths: Sequence[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


@cache
def drawn(number: int, extension: str = ".jpg", *parameters: int) -> bytes:
    bgr = draw_face(0, number, 0)[..., ::-1]
    done, data = cv2.imencode(extension, np.ascontiguousarray(bgr), list(parameters))
    assert done
    return bytes(data)


@pytest.fixture(scope="module")
def photographs(real_faces: Path) -> list[bytes]:
    """16 of 200x200 pixels."""
    return load(sorted((real_faces / "utkface" / "images").iterdir())[::90][:16])


@pytest.fixture(scope="module")
def standins(real_faces: Path) -> list[bytes]:
    """16 of 112x112 pixels."""
    return load(sorted((real_faces / "standin" / "images").glob("*/*"))[::150][:16])


@pytest.mark.parametrize(("faces", "size"), [("photographs", 200), ("standins", 112)])
def test_real_faces_are_decoded_as_opencv_decodes_them(faces: str, size: int, request: pytest.FixtureRequest) -> None:
    encoded: list[bytes] = request.getfixturevalue(faces)
    off = difference(batch_of(encoded, image_size=size), torch.stack([opencv(face) for face in encoded]))
    assert off.max() <= 1  # JPEG decoders may round differently
    assert off.mean() < 0.02


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
    assert difference(batch_of(encoded), torch.stack([opencv(face) for face in encoded])).max() <= 1


def test_a_grey_image_has_three_equal_channels() -> None:
    done, grey = cv2.imencode(".jpg", cv2.cvtColor(draw_face(0, 0, 0), cv2.COLOR_RGB2GRAY))
    assert done
    (image,) = batch_of([bytes(grey)])
    assert difference(image, opencv(bytes(grey))).max() <= 1
    assert torch.equal(image[..., 0], image[..., 1])
    assert torch.equal(image[..., 0], image[..., 2])


def test_a_batch_is_uint8_with_the_channels_last() -> None:
    images = batch_of([drawn(number) for number in range(5)])
    assert images.shape == (5, 112, 112, 3)
    assert images.dtype == torch.uint8
    assert images.is_contiguous()


def test_red_comes_first() -> None:
    bgr = np.zeros((112, 112, 3), np.uint8)
    bgr[..., 2] = 255
    (image,) = batch_of([bytes(cv2.imencode(".png", bgr)[1])])
    assert image.float().mean((0, 1)).tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [64, 112, 224])
def test_images_of_another_size_are_resized(photographs: list[bytes], size: int) -> None:
    expected = interpolated(torch.stack([opencv(face) for face in photographs]), size)
    images = batch_of(photographs, image_size=size, resize=True)
    assert images.shape[1:] == (size, size, 3)
    off = difference(images, expected)
    assert off[:, 1:-1, 1:-1].max() < 1.01
    assert off.mean() < 0.3  # torch shortens the filter at the border, DALI repeats the border


def test_an_image_that_is_not_square_becomes_square() -> None:
    wide = draw_face(0, 1, 0)[20:90]
    encoded = bytes(cv2.imencode(".png", np.ascontiguousarray(wide))[1])
    off = difference(batch_of([encoded], resize=True), interpolated(opencv(encoded)[None], 112))
    assert off[:, 1:-1, 1:-1].max() < 1.01


def test_an_image_of_the_right_size_is_not_changed_by_others(photographs: list[bytes]) -> None:
    right = [drawn(number) for number in range(3)]
    mixed = batch_of([right[0], photographs[0], right[1], photographs[1], right[2]], resize=True)
    assert torch.equal(mixed[::2], batch_of(right, resize=False))


@pytest.mark.parametrize("prefetch", [1, 2, 5])
@pytest.mark.parametrize("sizes", [[], [3], [3, 1, 2, 3, 3, 1, 2]])
def test_every_input_comes_out_once_and_in_order_whatever_its_size(sizes: list[int], prefetch: int) -> None:
    starts = np.cumsum([0, *sizes]).tolist()
    inputs = [Inputs([drawn(number) for number in range(*span)]) for span in pairwise(starts)]
    batches = list(decoded(iter(inputs), options(max_batch_size=3, prefetch=prefetch)))
    assert len(batches) == len(inputs)
    for batch, given in zip(batches, inputs, strict=True):
        assert torch.equal(batch, batch_of(given.files))


@pytest.mark.parametrize("prefetch", [1, 3])
def test_inputs_are_asked_for_no_further_ahead_than_prefetch(prefetch: int) -> None:
    asked = 0

    def inputs() -> Iterator[Inputs]:
        nonlocal asked
        for number in range(12):
            asked += 1
            yield Inputs([drawn(number)])

    for came_out, _ in enumerate(decoded(inputs(), options(prefetch=prefetch))):
        assert asked <= came_out + prefetch


def test_a_batch_stays_valid_after_the_next_ones_and_after_the_end() -> None:
    inputs = iter([Inputs([drawn(number)]) for number in range(20)])
    held = [(batch, batch.clone()) for batch in decoded(inputs, options(max_batch_size=1))]
    assert len({batch.data_ptr() for batch, _ in held}) == 20
    assert all(torch.equal(batch, as_it_came) for batch, as_it_came in held)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_a_batch(threads: int) -> None:
    encoded = [drawn(number) for number in range(9)]
    assert torch.equal(batch_of(encoded, threads=threads), batch_of(encoded))


def truncated(extension: str, parts: int) -> bytes:
    whole = drawn(0, extension)
    return whole[: len(whole) // parts]


def with_a_hole(extension: str) -> bytes:
    """As a page that a disk lost."""
    whole = drawn(0, extension)
    return whole[:100] + bytes(500) + whole[600:]


UNDECODABLE = {
    "nothing": b"",
    "text": b"no image" * 20,
    "a JPEG cut in its header": truncated(".jpg", 40),
    "a JPEG with a hole in its header": with_a_hole(".jpg"),
    "a JPEG cut in its picture": truncated(".jpg", 2),
    "a PNG cut in its picture": truncated(".png", 2),
    "a PNG with a hole": with_a_hole(".png"),
    "a TIFF cut before its directory": truncated(".tiff", 2),
}


@pytest.mark.parametrize("kind", UNDECODABLE)
def test_an_image_that_does_not_decode_is_an_error_of_ours_and_others_decode_after_it(kind: str) -> None:
    encoded = [drawn(number) for number in range(64)]  # so many that DALI's threads share them: some of these crash it
    broken = [encoded[0], UNDECODABLE[kind], *encoded[2:]]
    batches = decoded(map(Inputs, [encoded, broken, encoded]), options(max_batch_size=64, prefetch=1))
    before = next(batches)
    with pytest.raises(DecodingFailed, match="of the batches under way"):
        next(batches)
    assert list(batches) == []
    assert torch.equal(batch_of(encoded, max_batch_size=64), before)


def test_a_failure_leaves_no_thread_behind() -> None:
    def failing() -> int:
        with pytest.raises(DecodingFailed):
            batch_of([drawn(0), UNDECODABLE["a JPEG cut in its picture"]])
        return len(list(Path("/proc/self/task").iterdir()))

    assert failing() >= max(failing() for _ in range(5))


def test_what_goes_wrong_with_the_inputs_comes_through_as_it_is() -> None:
    def inputs() -> Iterator[Inputs]:
        yield Inputs([drawn(0)])
        raise DataError("shard 7 is gone")

    with pytest.raises(DataError, match="shard 7 is gone"):
        list(decoded(inputs(), options()))


def test_images_are_augmented_after_their_resize_wherever_they_were_decoded(photographs: list[bytes]) -> None:
    config = AugmentConfig.model_validate("randaugment")
    steps = draw_steps(config, 0, 112, np.arange(16), np.zeros(16, np.int64))
    plain = batch_of(photographs, resize=True)
    with_steps = options(resize=True, possible_ops=possible_ops(config))
    (at_once,) = decoded(iter([Inputs(photographs, steps)]), with_steps)
    (afterwards,) = augmented(iter([(plain.numpy(), steps)]), with_steps)
    assert torch.equal(at_once, afterwards)
    assert (at_once != plain).any((1, 2, 3)).float().mean() > 0.9
    rows = zip(plain.numpy(), steps.ops.tolist(), steps.parameters.tolist(), strict=True)
    expected = np.stack([reference.apply(*row) for row in rows])
    assert difference(at_once, torch.from_numpy(expected)).mean() < 0.5


def test_steps_belong_to_their_batch() -> None:
    encoded = [drawn(number) for number in range(4)]
    flip = AugmentConfig(flip=1)
    steps = draw_steps(flip, 0, 112, np.arange(4), np.zeros(4, np.int64))
    nothing = Steps(np.zeros_like(steps.ops), np.zeros_like(steps.parameters))
    inputs = [Inputs(encoded, steps), Inputs(encoded[:2], Steps(nothing.ops[:2], nothing.parameters[:2]))] * 3
    batches = list(decoded(iter(inputs), options(possible_ops=possible_ops(flip), prefetch=3)))
    plain = batch_of(encoded)
    for flipped, as_it_was in zip(batches[::2], batches[1::2], strict=True):
        assert torch.equal(flipped, plain.flip(2))
        assert torch.equal(as_it_was, plain[:2])


@pytest.mark.gpu
@pytest.mark.parametrize("size", [112, 200])
def test_the_gpu_makes_what_the_cpu_makes(photographs: list[bytes], size: int) -> None:
    given: dict[str, Any] = {"image_size": size, "resize": True}
    on_gpu = batch_of(photographs, device=torch.device("cuda", 0), **given)
    assert on_gpu.device == torch.device("cuda", 0)
    assert on_gpu.is_contiguous()
    off = difference(on_gpu.cpu(), batch_of(photographs, **given))
    assert off.max() <= 1
    assert off.mean() < 0.5
