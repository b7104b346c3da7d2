"""The plain operations: Pillow's and SciPy's, where they have the same."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter

from pipeline.reference import OPERATIONS, apply, luma
from pipeline.steps import Op

Pixels = npt.NDArray[np.uint8]
GRID = 1 << 16
FACTORS = st.floats(0, 2, width=32)
ENHANCERS: Mapping[Op, Callable[[Image.Image], ImageEnhance._Enhance]] = {
    Op.BRIGHTNESS: ImageEnhance.Brightness,
    Op.CONTRAST: ImageEnhance.Contrast,
    Op.COLOR: ImageEnhance.Color,
    Op.SHARPNESS: ImageEnhance.Sharpness,
}


def pillow(image: Pixels, op: Op, values: Sequence[float]) -> Pixels:
    """What Pillow makes of an image."""
    picture = Image.fromarray(image)
    if op == Op.WARP:
        a, b, c, d, e, f = values
        corners = (a, b, c + (1 - a - b) / 2, d, e, f + (1 - d - e) / 2)  # pixel centres lie at halves there
        return np.asarray(picture.transform(picture.size, Image.Transform.AFFINE, corners, Image.Resampling.NEAREST))
    if op in ENHANCERS:
        return np.asarray(ENHANCERS[op](picture).enhance(values[0]))
    if op == Op.POSTERIZE:
        return np.asarray(ImageOps.posterize(picture, int(values[0])))
    if op == Op.SOLARIZE:
        return np.asarray(ImageOps.solarize(picture, values[0]))  # type: ignore[arg-type]
    if op == Op.AUTOCONTRAST:
        return np.asarray(ImageOps.autocontrast(picture))
    return np.asarray(ImageOps.equalize(picture))


@st.composite
def images(draw: st.DrawFn) -> Pixels:
    """Images of few or many levels, flat ones among them."""
    height, width = draw(st.integers(3, 40)), draw(st.integers(3, 40))
    levels = draw(st.lists(st.integers(0, 255), min_size=1, max_size=40))
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).choice(np.array(levels, np.uint8), (height, width, 3))


def coefficients(most: int) -> st.SearchStrategy[float]:
    return st.integers(-most * GRID, most * GRID).map(lambda number: number / GRID)


OPERATIONS_OF_PILLOW = st.one_of(
    st.tuples(
        st.just(Op.WARP),
        st.tuples(*(coefficients(most) for most in (2, 2, 50, 2, 2, 50))),
    ),
    st.tuples(st.sampled_from(sorted(ENHANCERS)), st.tuples(FACTORS)),
    st.tuples(st.just(Op.POSTERIZE), st.tuples(st.integers(1, 8))),
    st.tuples(st.just(Op.SOLARIZE), st.tuples(st.floats(0, 256))),
    st.tuples(st.sampled_from([Op.AUTOCONTRAST, Op.EQUALIZE]), st.just(())),
)
STRIPES = np.repeat(np.arange(40, dtype=np.uint8)[:, None, None] * 6, 3, -1).repeat(13, 1)


@settings(deadline=None, max_examples=400)
@given(images(), OPERATIONS_OF_PILLOW)
@example(STRIPES, (Op.EQUALIZE, ()))
@example(STRIPES, (Op.WARP, (1.0, 0.5, 0.5, 0.0, 1.0, 0.0)))  # ties
def test_what_pillow_has_is_pillows_bit_for_bit(image: Pixels, operation: tuple[Op, tuple[float, ...]]) -> None:
    op, values = operation
    assert np.array_equal(apply(image, [op], [values]), pillow(image, op, values))


@pytest.mark.parametrize("op", [*ENHANCERS, Op.AUTOCONTRAST, Op.EQUALIZE])
def test_real_faces_are_pillows_bit_for_bit(op: Op, real_faces: Path) -> None:
    for number, path in enumerate(sorted((real_faces / "utkface" / "images").iterdir())[::150]):
        image = np.asarray(Image.open(path).convert("RGB"))
        assert np.array_equal(apply(image, [op], [[0.2 * number]]), pillow(image, op, [0.2 * number]))


@given(st.integers(0, 2**32 - 1))
def test_grey_is_pillows(seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    assert np.array_equal(luma(image), np.asarray(Image.fromarray(image).convert("L")))


@pytest.fixture
def gradient() -> Pixels:
    y, x = np.mgrid[:40, :60]
    return np.stack([4 * x, 6 * y, 2 * (x + y)], -1).astype(np.uint8)


def test_a_box_stays_or_goes(gradient: Pixels) -> None:
    kept = apply(gradient, [Op.KEEP], [(5, 7, 50, 30)])
    erased = apply(gradient, [Op.ERASE], [(5, 7, 50, 30, 128)])
    inside = np.zeros((40, 60, 1), bool)
    inside[7:30, 5:50] = True
    assert np.array_equal(kept, np.where(inside, gradient, 0))
    assert np.array_equal(erased, np.where(inside, 128, gradient))


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.0])
def test_blur_is_scipys_gaussian(gradient: Pixels, sigma: float) -> None:
    spotted = gradient.copy()
    spotted[20, 30] = 255
    expected = gaussian_filter(spotted.astype(float), (sigma, sigma, 0), mode="mirror")
    assert np.abs(apply(spotted, [Op.BLUR], [[sigma]]) - expected).max() < 1.5


def test_low_resolution_by_areas_is_the_mean_of_blocks(gradient: Pixels) -> None:
    low = apply(gradient, [Op.LOW_RESOLUTION], [[15, 10, cv2.INTER_AREA, cv2.INTER_NEAREST]])
    means = gradient.reshape(10, 4, 15, 4, 3).mean((1, 3))
    assert np.abs(low[::4, ::4] - means).max() <= 0.5
    assert np.array_equal(low, low[::4, ::4].repeat(4, 0).repeat(4, 1))


def test_jpeg_loses_the_more_the_lower_its_quality_and_keeps_colours(gradient: Pixels) -> None:
    lost = [np.abs(apply(gradient, [Op.JPEG], [[quality]]) - gradient.astype(float)).mean() for quality in (95, 50, 5)]
    assert lost == sorted(lost)
    assert 0 < lost[0] < 3


def test_steps_follow_each_other(gradient: Pixels) -> None:
    steps = [(Op.NOTHING, ()), (Op.POSTERIZE, (2,)), (Op.SOLARIZE, (100,)), (Op.NOTHING, ())]
    expected = pillow(pillow(gradient, Op.POSTERIZE, (2,)), Op.SOLARIZE, (100,))
    assert np.array_equal(apply(gradient, *zip(*steps, strict=True)), expected)


def test_every_operation_is_there() -> None:
    assert set(OPERATIONS) == set(Op)
