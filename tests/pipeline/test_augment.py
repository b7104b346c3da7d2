"""Random draws depend on (seed, sample, pass, operation) and on nothing else."""

import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from scipy.stats import chi2_contingency, chisquare, ks_2samp, kstest

from pipeline.augment import draw_steps, join_steps, possible_ops, uniform
from pipeline.augment_config import PRESETS, AugmentConfig
from pipeline.reference import apply
from pipeline.steps import Op, Steps

Ids = npt.NDArray[np.int64]
EVERYTHING = {
    **dict.fromkeys(("flip", "affine", "crop", "low_resolution", "photometric", "grayscale"), 0.5),
    **dict.fromkeys(("blur", "jpeg", "erasing"), 0.5),
    "randaugment": {"operations": 2},
}
RARE = 1e-6  # an honest draw fails a test as seldom as that

BATCHES = st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 10**6)), min_size=1, max_size=100)
IDS, PASSES = (grid.ravel() for grid in np.meshgrid(np.arange(300), np.arange(300), indexing="ij"))


def columns(batch: list[tuple[int, int]]) -> tuple[Ids, Ids]:
    ids, passes = np.array(batch, np.int64).T
    return ids, passes


@settings(deadline=None, max_examples=50)
@given(BATCHES, st.randoms(use_true_random=False), st.integers(0, 100), st.integers(0, 2**31))
def test_permuting_or_splitting_the_batch_permutes_or_splits_the_draws(
    batch: list[tuple[int, int]], random: Random, cut: int, seed: int
) -> None:
    ids, passes = columns(batch)
    draws = uniform(seed, "flip", ids, passes)
    shuffled = np.array(random.sample(range(len(ids)), len(ids)))
    assert np.array_equal(uniform(seed, "flip", ids[shuffled], passes[shuffled]), draws[shuffled])
    parts = [uniform(seed, "flip", ids[part], passes[part]) for part in (slice(None, cut), slice(cut, None))]
    assert np.array_equal(np.concatenate(parts), draws)


@pytest.mark.parametrize(
    ("seed", "operation", "id_step", "pass_step"),
    [(1, "flip", 0, 0), (0, "crop", 0, 0), (0, "flip", 1, 0), (0, "flip", 0, 1), (0, "flip", 300, 300)],
)
def test_each_thing_a_draw_depends_on_makes_it_another(seed: int, operation: str, id_step: int, pass_step: int) -> None:
    one = uniform(0, "flip", IDS, PASSES)
    other = uniform(seed, operation, IDS + id_step, PASSES + pass_step)
    assert (one != other).all()
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.02  # 6 standard deviations of 90,000 independent draws


def test_the_sample_and_the_pass_are_no_sum() -> None:
    one, other = uniform(0, "flip", IDS, PASSES), uniform(0, "flip", PASSES, IDS)
    assert (one == other).sum() == 300  # only where sample and pass are the same number


def test_draws_are_uniform() -> None:
    draws = uniform(5, "flip", IDS, PASSES)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.bincount((draws * 100).astype(np.int64), minlength=100)
    expected = len(draws) / 100
    assert abs(((counts - expected) ** 2 / expected).sum() - 99) < 6 * np.sqrt(2 * 99)


def configured(*args: Any, **fields: Any) -> AugmentConfig:
    return AugmentConfig.model_validate(*args or ({"flip": 0} | fields,))


def drawn(config: AugmentConfig, number: int = 4000, size: int = 112, seed: int = 0) -> Steps:
    return draw_steps(config, seed, size, IDS[:number], PASSES[:number])


def parameters(op: Op, number: int = 4000, size: int = 112, **fields: Any) -> npt.NDArray[np.float32]:
    """Return the parameters of one operation that is the only one."""
    steps = drawn(configured(**fields), number, size)
    assert (steps.ops == op).all()
    return steps.parameters[:, 0]


@settings(deadline=None, max_examples=30)
@given(BATCHES, st.randoms(use_true_random=False), st.integers(0, 100), st.integers(0, 2**31))
def test_steps_do_not_depend_on_the_rest_of_the_batch(
    batch: list[tuple[int, int]], random: Random, cut: int, seed: int
) -> None:
    (ids, passes), config = columns(batch), configured(EVERYTHING)
    whole = draw_steps(config, seed, 112, ids, passes)
    shuffled = np.array(random.sample(range(len(ids)), len(ids)))
    for rows in (shuffled, shuffled[:cut], shuffled[cut:]):
        part = draw_steps(config, seed, 112, ids[rows], passes[rows])
        assert np.array_equal(part.ops, whole.ops[rows])
        assert np.array_equal(part.parameters, whole.parameters[rows])


@pytest.mark.parametrize("config", [*PRESETS, EVERYTHING])
def test_a_step_is_now_and_then_each_thing_that_it_may_be(config: Any) -> None:
    steps = drawn(configured(config))
    seen = [frozenset(map(Op, set(column.tolist()))) for column in steps.ops.T]
    assert seen == possible_ops(configured(config))
    assert steps.ops.shape == steps.parameters.shape[:2]


def test_steps_come_in_the_order_of_the_configuration() -> None:
    randaugment = possible_ops(configured(randaugment={}))[0] - {Op.NOTHING}
    photometric = {Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR}
    assert [set(ops) - {Op.NOTHING} for ops in possible_ops(configured(EVERYTHING))] == [
        *({Op.WARP}, {Op.WARP}, {Op.KEEP}, {Op.LOW_RESOLUTION}),
        *[photometric] * 3,
        *[randaugment] * 2,
        *({Op.COLOR}, {Op.BLUR}, {Op.JPEG}, {Op.ERASE}),
    ]


def test_what_cannot_happen_takes_no_step() -> None:
    assert drawn(configured("none"), 5).ops.shape == (5, 0)
    assert possible_ops(configured(blur=1)) == [frozenset({Op.BLUR})]


@pytest.mark.parametrize("axis", [0, 1])
def test_every_sample_and_every_pass_is_flipped_half_of_the_time(axis: int) -> None:
    flipped = drawn(configured(flip=0.5), len(IDS)).ops[:, 0] == Op.WARP
    shares = flipped.reshape(300, 300).mean(axis)
    assert np.abs(shares - 0.5).max() < 6 * 0.5 / np.sqrt(300)
    assert shares.std() == pytest.approx(0.5 / np.sqrt(300), rel=0.25)


@pytest.mark.parametrize("name", [name for name in EVERYTHING if name != "randaugment"])
def test_each_operation_happens_as_often_as_it_should(name: str) -> None:
    happens = drawn(configured(**{name: 0.2}), len(IDS)).ops[:, 0] > 0
    assert abs(happens.mean() - 0.2) < 6 * np.sqrt(0.2 * 0.8 / len(IDS))


def test_operations_happen_independently() -> None:
    happens = drawn(configured(EVERYTHING | {"randaugment": None}), len(IDS)).ops[:, [0, 1, 2, 3, 4, 7, 8, 9, 10]] > 0
    between = np.corrcoef(happens, rowvar=False) - np.eye(happens.shape[1])
    assert np.abs(between).max() < 6 / np.sqrt(len(IDS))


@pytest.mark.parametrize("size", [1, 2, 9, 112])
def test_a_flip_is_numpys_and_two_are_none(size: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    step = ([Op.WARP], [parameters(Op.WARP, 1, size, flip=1)[0]])
    assert np.array_equal(apply(image, *step), image[:, ::-1])
    assert np.array_equal(apply(apply(image, *step), *step), image)


def test_an_affine_warp_turns_shifts_and_scales_as_drawn() -> None:
    warps = parameters(Op.WARP, affine={"probability": 1, "degrees": 20, "translate": 0.1, "scale": (0.8, 1.25)})
    a, b, c, d, e, f = warps.astype(float).T
    scale, degrees = 1 / np.hypot(a, d), np.rad2deg(np.arctan2(d, a))
    centre = 55.5  # what comes from it has moved by the shift
    back = np.linalg.solve(warps[:, [[0, 1], [3, 4]]].astype(float), np.stack([centre - c, centre - f], 1)[..., None])
    assert np.allclose([a, b], [e, -d], atol=1e-4)
    assert kstest(degrees, "uniform", (-20, 40)).pvalue > RARE
    assert kstest(scale, "uniform", (0.8, 0.45)).pvalue > RARE
    for shift in back[..., 0].T - centre:
        assert kstest(shift, "uniform", (-11.2, 22.4)).pvalue > RARE
    assert np.abs(np.corrcoef(np.vstack([degrees, scale, back[..., 0].T])) - np.eye(4)).max() < 6 / np.sqrt(len(warps))


def torchvision_box(random: Random, size: int, scale: tuple[float, float], ratio: tuple[float, float]) -> list[int]:
    """`RandomResizedCrop.get_params` in words of its own: left, top, right, bottom."""
    for _ in range(10):
        area, shape = size**2 * random.uniform(*scale), math.exp(random.uniform(*map(math.log, ratio)))
        width, height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < width <= size and 0 < height <= size:
            break
    left, top = random.randint(0, size - width), random.randint(0, size - height)
    return [left, top, left + width, top + height]


@pytest.mark.parametrize(
    ("name", "op", "scale", "ratio"),
    [("crop", Op.KEEP, (0.2, 1.0), (3 / 4, 4 / 3)), ("erasing", Op.ERASE, (0.02, 0.33), (0.3, 3.3))],
)
def test_boxes_are_drawn_as_torchvision_draws_them(
    name: str, op: Op, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    boxes = parameters(op, 20000, **{name: 1})[:, :4]
    expected = np.array([torchvision_box(Random(number), 112, scale, ratio) for number in range(20000)])
    for ours, theirs in ((boxes, expected), (boxes[:, 2:] - boxes[:, :2], expected[:, 2:] - expected[:, :2])):
        for column in range(ours.shape[1]):
            assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > RARE
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= 112).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_a_box_that_never_fits_is_cut_to_the_image() -> None:
    boxes = parameters(Op.KEEP, crop={"probability": 1, "scale": (0.9, 1), "ratio": (3, 3)})
    assert (boxes[:, [0, 2]] == [0, 112]).all()
    assert ((boxes[:, 3] - boxes[:, 1]) <= 65).all()


def test_what_is_erased_turns_mid_grey() -> None:
    assert (parameters(Op.ERASE, erasing=1)[:, 4] == 128).all()


def test_grayscale_leaves_no_colour() -> None:
    assert (parameters(Op.COLOR, grayscale=1) == 0).all()


def test_low_resolution_draws_the_side_and_both_interpolations() -> None:
    width, height, down, up = parameters(Op.LOW_RESOLUTION, 20000, low_resolution=1)[:, :4].T
    assert np.array_equal(width, height)
    assert set(width) == set(range(22, 112))
    assert chisquare(np.bincount(width.astype(int))[23:]).pvalue > RARE  # the first is drawn in part
    codes = [cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_LANCZOS4]
    pairs = np.array([[((down == one) & (up == other)).sum() for other in codes] for one in codes])
    assert pairs.sum() == 20000
    assert chisquare(pairs.ravel()).pvalue > RARE


def test_photometric_changes_come_in_every_order_and_strength() -> None:
    steps = drawn(configured(photometric={"probability": 1, "brightness": 0.5, "contrast": 0.2, "saturation": 1}), 6000)
    orders, counts = np.unique(steps.ops, axis=0, return_counts=True)
    assert {tuple(sorted(order)) for order in orders.tolist()} == {(Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR)}
    assert len(orders) == 6
    assert chisquare(counts).pvalue > RARE
    for op, most in ((Op.BRIGHTNESS, 0.5), (Op.CONTRAST, 0.2), (Op.COLOR, 1.0)):
        factors = steps.parameters[steps.ops == op][:, 0]
        assert kstest(factors, "uniform", (1 - most, 2 * most)).pvalue > RARE


def test_blur_and_jpeg_reach_the_ends_of_their_ranges() -> None:
    sigmas = parameters(Op.BLUR, blur={"probability": 1, "sigma": (0.5, 1.5)})[:, 0]
    assert kstest(sigmas, "uniform", (0.5, 1)).pvalue > RARE
    qualities = parameters(Op.JPEG, jpeg={"probability": 1, "quality": (30, 39)})[:, 0]
    values, counts = np.unique(qualities, return_counts=True)
    assert values.tolist() == list(range(30, 40))
    assert chisquare(counts).pvalue > RARE


MAGNITUDES: Mapping[str, tuple[float, float, bool]] = {  # first and last of 31, and whether they have a sign
    "ShearX": (0.0, 0.3, True),
    "TranslateX": (0.0, 150.0 / 331.0 * 40, True),
    "Rotate": (0.0, 30.0, True),
    **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (0.0, 0.9, True)),
    "Posterize": (0.0, 4.0, False),
    "Solarize": (255.0, 0.0, False),
    **dict.fromkeys(("Identity", "AutoContrast", "Equalize", "Grayscale"), (0.0, 0.0, False)),
}
AFFINE = Image.Transform.AFFINE
PILLOW: Mapping[str, Callable[[Image.Image, float], Image.Image]] = {
    "Identity": lambda image, _: image,
    "ShearX": lambda image, m: image.transform(image.size, AFFINE, (1, math.tan(math.atan(m)), 0, 0, 1, 0)),
    "TranslateX": lambda image, m: image.transform(image.size, AFFINE, (1, 0, -int(m), 0, 1, 0)),
    "Rotate": lambda image, m: image.rotate(m),
    "Brightness": lambda image, m: ImageEnhance.Brightness(image).enhance(1 + m),
    "Color": lambda image, m: ImageEnhance.Color(image).enhance(1 + m),
    "Contrast": lambda image, m: ImageEnhance.Contrast(image).enhance(1 + m),
    "Sharpness": lambda image, m: ImageEnhance.Sharpness(image).enhance(1 + m),
    "Posterize": lambda image, m: ImageOps.posterize(image, 8 - round(m)),
    "Solarize": ImageOps.solarize,  # type: ignore[dict-item]
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Grayscale": lambda image, _: image.convert("L").convert("RGB"),
}


def test_randaugment_is_torchvisions_on_pillow() -> None:
    """The pictures that can be drawn are those of 13 operations x 30 bins x 2 signs, bit for bit."""
    image = np.random.default_rng(3).integers(20, 200, (40, 40, 3), np.uint8)
    expected = set()
    for name, (first, last, signed) in MAGNITUDES.items():
        for magnitude in torch.linspace(first, last, 31).tolist()[1:]:
            for sign in (1, -1) if signed else (1,):
                expected.add(np.asarray(PILLOW[name](Image.fromarray(image), sign * magnitude)).tobytes())
    steps = drawn(configured(randaugment={"operations": 1, "magnitude": 30}), 20000, 40)
    rows = np.unique(np.column_stack([steps.ops, steps.parameters[:, 0]]), axis=0)
    assert {apply(image, [int(row[0])], [row[1:].tolist()]).tobytes() for row in rows} == expected


def kinds(steps: Steps) -> npt.NDArray[np.int64]:
    """Return which of the 13 operations each step is."""
    a, b = steps.parameters[..., 0], steps.parameters[..., 1]
    shear, turn, grey = (steps.ops == Op.WARP) & (a == 1) & (b != 0), (steps.ops == Op.WARP) & (a != 1), a == 0
    names = np.select([shear, turn, (steps.ops == Op.COLOR) & grey], [100, 101, 102], steps.ops.astype(int))
    return np.unique(names, return_inverse=True)[1].reshape(steps.ops.shape)


def test_randaugment_draws_its_operations_evenly_and_each_for_itself() -> None:
    found = kinds(drawn(configured("randaugment"), 40000))[:, 1:]
    for step in found.T:
        assert chisquare(np.bincount(step, minlength=13)).pvalue > RARE
    for first, second in ((0, 1), (1, 3)):
        table = np.bincount(found[:, first] * 13 + found[:, second], minlength=169).reshape(13, 13)
        assert chi2_contingency(table).pvalue > RARE
    same_sample = found.reshape(-1, 100, 4)
    table = np.bincount((same_sample[:, :-1, 0] * 13 + same_sample[:, 1:, 0]).ravel(), minlength=169).reshape(13, 13)
    assert chi2_contingency(table).pvalue > RARE


def test_randaugment_draws_bins_and_signs_evenly() -> None:
    steps = drawn(configured(randaugment={"operations": 1, "magnitude": 16}), 40000)
    for op in (Op.BRIGHTNESS, Op.CONTRAST, Op.SHARPNESS):
        values, counts = np.unique(steps.parameters[steps.ops == op][:, 0], return_counts=True)
        expected = [1 + sign * 0.03 * number for sign in (-1, 1) for number in range(1, 17)]
        assert np.allclose(values, sorted(expected), atol=1e-6)
        assert chisquare(counts).pvalue > RARE


def test_steps_of_several_sets_join_in_their_rows() -> None:
    one, other = drawn(configured("randaugment"), 3), drawn(configured("adaface"), 2)
    joined = join_steps([(np.array([4, 0, 1]), one), (np.array([2, 3]), other)], 6)
    assert joined.ops.shape == (6, 6)
    assert np.array_equal(joined.ops[[4, 0, 1], :5], one.ops)
    assert np.array_equal(joined.parameters[[2, 3]], other.parameters)
    assert not joined.ops[[4, 0, 1], 5:].any()
    assert not joined.ops[5].any()


def test_nothing_joins_to_nothing() -> None:
    assert join_steps([], 4).ops.shape == (4, 0)
