"""The fast path: the plain operations' images, whatever the batch, the threads and the place."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import reference
from pipeline.augment import draw_steps
from pipeline.augment_config import AugmentConfig
from pipeline.fused import apply_steps
from pipeline.steps import MAX_PARAMETERS, Op, Steps
from shardgen.images import decode

Pixels = npt.NDArray[np.uint8]
Step = tuple[Op, Sequence[float]]
ROUNDED = (Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.SHARPNESS, Op.AUTOCONTRAST)


def steps_of(*rows: Sequence[Step]) -> Steps:
    """Return a batch's steps, given each image's."""
    width = max(map(len, rows))
    steps = Steps(np.zeros((len(rows), width), np.uint8), np.zeros((len(rows), width, MAX_PARAMETERS), np.float32))
    for number, row in enumerate(rows):
        for place, (op, values) in enumerate(row):
            steps.ops[number, place] = op
            steps.parameters[number, place, : len(values)] = values
    return steps


def both(images: Pixels, steps: Steps) -> tuple[Pixels, Pixels]:
    """Return what the fast and the plain operations make of a batch."""
    rows = zip(images, steps.ops.tolist(), steps.parameters.tolist(), strict=True)
    plain = np.stack([reference.apply(image, ops, values) for image, ops, values in rows])
    return apply_steps(images, steps, np.empty_like(images)), plain


def random_steps(preset: str, number: int, size: int = 112) -> Steps:
    ids = np.arange(number)
    return draw_steps(AugmentConfig.model_validate(preset), 7, size, ids, ids % 3)


@st.composite
def images(draw: st.DrawFn) -> Pixels:
    """One image of few or many levels, flat ones among them."""
    height, width = draw(st.integers(3, 40)), draw(st.integers(3, 40))
    levels = draw(st.lists(st.integers(0, 255), min_size=1, max_size=40))
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).choice(np.array(levels, np.uint8), (1, height, width, 3))


def coefficients(most: float) -> st.SearchStrategy[float]:
    end = int(most * (1 << 16))
    return st.integers(-end, end).map(lambda number: number / (1 << 16))


def whole(most: int) -> st.SearchStrategy[float]:
    return st.integers(-most, most).map(float)


SHIFTS = st.tuples(st.just(1), st.just(0), whole(50), st.just(0), st.just(1), st.sampled_from([0, 3]))
MIRRORS = st.tuples(st.just(-1), st.just(0), whole(50), st.just(0), st.just(1), st.just(0))
WARPS = st.tuples(*(coefficients(most) for most in (1.5, 1.5, 40, 1.5, 1.5, 40)))
BOXES = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(21, 40)] * 2)
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just(Op.WARP), SHIFTS | MIRRORS | WARPS),
    st.tuples(st.sampled_from([op for op in ROUNDED if op != Op.AUTOCONTRAST]), st.tuples(st.floats(0, 2, width=32))),
    st.tuples(st.just(Op.POSTERIZE), st.tuples(st.integers(0, 8))),
    st.tuples(st.just(Op.SOLARIZE), st.tuples(st.floats(0, 256, width=32))),
    st.tuples(st.sampled_from([Op.NOTHING, Op.AUTOCONTRAST, Op.EQUALIZE]), st.just(())),
    st.tuples(st.just(Op.KEEP), BOXES),
    st.tuples(st.just(Op.ERASE), BOXES.map(lambda box: (*box, 128))),
    st.tuples(st.just(Op.LOW_RESOLUTION), st.tuples(*[st.integers(1, 40)] * 2, *[st.integers(0, 4)] * 2)),
    st.tuples(st.just(Op.BLUR), st.tuples(st.floats(0.125, 2, width=32))),
    st.tuples(st.just(Op.JPEG), st.tuples(st.integers(1, 100))),
)


SQUARE = np.random.default_rng(8).integers(0, 256, (1, 20, 20, 3), np.uint8)


@settings(deadline=None, max_examples=400)
@given(images(), STEPS)
@example(SQUARE, (Op.WARP, (1.0, 0.5, 0.5, 0.0, 1.0, 0.0)))  # ties between pixels
@example(SQUARE, (Op.WARP, (1.0, 0.0, 25.0, 0.0, 1.0, 0.0)))  # out of sight
@example(SQUARE, (Op.WARP, (-1.0, 0.0, 18.0, 0.0, 1.0, 0.0)))  # not quite a flip
def test_each_operation_is_the_plain_one(image: Pixels, step: Step) -> None:
    fast, plain = both(image, steps_of([step]))
    assert np.abs(fast.astype(int) - plain).max() <= (step[0] in ROUNDED)


def test_grey_is_at_most_a_level_beside_pillows_and_that_hardly_ever() -> None:
    levels = np.arange(0, 256, 3, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, 86, -1, 3)
    fast, plain = both(colours, steps_of([(Op.COLOR, [0.0])]))
    assert np.abs(fast.astype(int) - plain).max() <= 1
    assert (fast != plain).mean() < 2e-3


@pytest.fixture(scope="module")
def noise() -> Pixels:
    return np.random.default_rng(5).integers(0, 256, (60, 48, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def faces(real_faces: Path) -> Pixels:
    """320 faces of 112x112."""
    return np.stack(
        [decode(path.read_bytes()) for path in sorted((real_faces / "standin" / "images").glob("*/*"))[::8]]
    )


@pytest.mark.parametrize("preset", ["randaugment", "adaface", "vec2face"])
def test_chains_on_real_faces_are_the_plain_ones_nearly_everywhere(preset: str, faces: Pixels) -> None:
    fast, plain = both(faces, random_steps(preset, len(faces)))
    difference = np.abs(fast.astype(int) - plain)
    assert (difference > 0).mean() < 3e-3
    assert (difference > 1).mean() < 2e-4  # what a level more or less is to SOLARIZE and EQUALIZE


def test_warps_of_large_images_are_the_plain_ones_nearly_everywhere() -> None:
    images = np.random.default_rng(3).integers(0, 256, (40, 224, 224, 3), np.uint8)
    config, ids = AugmentConfig.model_validate({"flip": 0, "affine": 1}), np.arange(len(images))
    fast, plain = both(images, draw_steps(config, 7, 224, ids, ids))
    assert (fast != plain).any(-1).mean() < 1e-4


def test_what_is_not_rounded_is_exact_on_real_faces(faces: Pixels) -> None:
    steps = random_steps("randaugment", len(faces))
    exact = ~np.isin(steps.ops, ROUNDED).any(1)
    fast, plain = both(faces[exact], Steps(steps.ops[exact], steps.parameters[exact]))
    assert exact.sum() > 20
    assert np.array_equal(fast, plain)


@pytest.mark.parametrize("preset", ["randaugment", "vec2face"])
def test_neither_threads_nor_batches_nor_their_order_change_an_image(preset: str, noise: Pixels) -> None:
    steps = random_steps(preset, len(noise), 48)
    alone = [
        apply_steps(image[None].copy(), Steps(ops[None], values[None]))[0]
        for image, ops, values in zip(noise, steps.ops, steps.parameters, strict=True)
    ]
    turned = Steps(steps.ops[::-1], steps.parameters[::-1])
    assert np.array_equal(apply_steps(noise[::-1].copy(), turned)[::-1], alone)
    for threads in (1, 3):
        with ThreadPoolExecutor(threads) as pool:
            assert np.array_equal(apply_steps(noise, steps, np.empty_like(noise), pool), alone)


def test_images_change_in_place_or_not_at_all(noise: Pixels) -> None:
    steps, before = random_steps("randaugment", len(noise), 48), noise.copy()
    noise.flags.writeable = False
    out = apply_steps(noise, steps, np.empty_like(noise))
    noise.flags.writeable = True
    assert np.array_equal(noise, before)
    assert apply_steps(before, steps) is before
    assert np.array_equal(before, out)


def test_images_without_steps_are_copied_or_left(noise: Pixels) -> None:
    nothing = Steps(np.zeros((len(noise), 0), np.uint8), np.zeros((len(noise), 0, MAX_PARAMETERS), np.float32))
    assert np.array_equal(apply_steps(noise, nothing, np.empty_like(noise)), noise)
    noise.flags.writeable = False
    assert apply_steps(noise, nothing) is noise
    noise.flags.writeable = True


def test_what_fails_in_a_thread_is_raised(noise: Pixels) -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(cv2.error):
        apply_steps(noise[:1].copy(), steps_of([(Op.LOW_RESOLUTION, (0, 0, 0, 0))]), pool=pool)


def test_what_leaves_the_image_does_not_come_back(noise: Pixels) -> None:
    there_and_back = [(Op.WARP, (1, 0, 9, 0, 1, 0)), (Op.WARP, (1, 0, -9, 0, 1, 0))]
    out = apply_steps(noise[:1], steps_of(there_and_back), np.empty_like(noise[:1]))[0]
    assert np.array_equal(out[:, 9:], noise[0, :, 9:])
    assert not out[:, :9].any()
