"""Steps as DALI operators: what the plain reference does, exactly or within the tolerances that stand here."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipeline import reference
from pipeline.augment import draw_steps, possible_ops
from pipeline.augment_config import PRESETS, AugmentConfig
from pipeline.graph import GraphOptions, augmented
from pipeline.steps import MAX_PARAMETERS, Op, Steps
from shardgen.images import decode

Pixels = npt.NDArray[np.uint8]
"""`[images, size, size, 3]`"""
Parameters = Sequence[npt.NDArray[Any]]
"""Of an operation, each `[images]`."""
Draw = Callable[[np.random.Generator, int, int], Parameters]
"""Generator, number of images and their side -> parameters."""

TOLERANCES: Mapping[Op, tuple[int, float]] = {
    Op.WARP: (255, 1e-3),  # a pixel in a million: float32 is exact to 128 pixels, then ties can go the other way
    Op.EQUALIZE: (1, 0.3),
    Op.BLUR: (2, 0.05),
}
"""Levels by which a value may differ from the reference's after one operation, and by which values differ in
the mean; operations that are not named are exact, LOW_RESOLUTION follows."""
RESIZED: Mapping[int, tuple[float, float]] = {
    cv2.INTER_NEAREST: (0.05, 0.05),  # at 8 of 90 sides pixels coincide, and OpenCV's rounding picks the one before
    cv2.INTER_LINEAR: (0.2, 0.2),
    cv2.INTER_CUBIC: (0.4, 0.8),  # another cubic: -.5 instead of -.75
    cv2.INTER_AREA: (0.9, 1.6),  # a triangle instead of a box
    cv2.INTER_LANCZOS4: (0.3, 0.5),  # three lobes instead of four
}
"""OpenCV's interpolation -> levels in the mean, over all sides that are drawn, by which LOW_RESOLUTION differs for
going down, and up, by it."""
RESIZED_AT_WORST = 4.0
"""Levels in the mean at the side where the two differ most (44, down by any and up by area)."""
CHAINS: Mapping[str, tuple[float, float]] = {
    "none": (0, 0),
    "flip": (0, 0),
    "affine": (0, 0),
    "randaugment": (0.15, 0.015),
    "adaface": (0.3, 0.03),
    "vec2face": (0.45, 0.05),
    "everything": (0.9, 0.12),
}
"""Configuration -> levels in the mean, and share of values more than two levels off, after all steps."""
GPU_JPEG_MEAN = 4.0
"""On a GPU, DALI only mimics the encoder; on a CPU it calls OpenCV's. Not yet measured: no GPU has run this."""

CONFIGS: Mapping[str, Any] = {
    **PRESETS,
    "affine": {"affine": 1},
    "everything": {
        "affine": 0.5,
        "crop": 0.3,
        "low_resolution": 0.3,
        "photometric": 0.3,
        "randaugment": {},
        "grayscale": 0.1,
        "blur": 0.3,
        "jpeg": 0.3,
        "erasing": 0.3,
    },
}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="module")
def standins(real_faces: Path) -> Pixels:
    """100 of 112x112 pixels."""
    paths = sorted((real_faces / "standin" / "images").glob("*/*"))
    return np.stack([decode(path.read_bytes()) for path in paths[:: len(paths) // 100][:100]])


@pytest.fixture(scope="module")
def photographs(real_faces: Path) -> Pixels:
    """16 of 200x200 pixels."""
    paths = sorted((real_faces / "utkface" / "images").iterdir())[::90]
    return np.stack([decode(path.read_bytes()) for path in paths[:16]])


@pytest.fixture(scope="module")
def odd_images() -> Pixels:
    """Flat ones, ones of few levels, some of them rare, and noise."""
    random, shape = np.random.default_rng(0), (64, 64, 3)
    images = [np.full(shape, level, np.uint8) for level in (0, 1, 128, 255)]
    for levels in ([0, 255], [10, 11], [0, 1, 2], [7, 200, 201, 255], range(256)):
        choice = np.array(levels, np.uint8)
        rare = [0.99, *[0.01 / (len(choice) - 1)] * (len(choice) - 1)]
        images += [random.choice(choice, shape), random.choice(choice, shape, p=rare)]
    one_dot = np.zeros(shape, np.uint8)
    one_dot[3, 4] = 200
    return np.stack([*images, one_dot])


def executed(images: Pixels, steps: Steps, possible: Sequence[frozenset[Op]], device: torch.device) -> Pixels:
    options = GraphOptions(
        max_batch_size=len(images),
        image_size=images.shape[1],
        resize=False,
        device=device,
        threads=2,
        prefetch=1,
        possible_ops=possible,
    )
    (batch,) = augmented(iter([(images, steps)]), options)
    return np.asarray(batch.cpu().numpy(), np.uint8)


def plain(images: Pixels, steps: Steps) -> Pixels:
    rows = zip(images, steps.ops.tolist(), steps.parameters.tolist(), strict=True)
    return np.stack([reference.apply(*row) for row in rows])


def off(images: Pixels, others: Pixels) -> npt.NDArray[np.int64]:
    return np.asarray(np.abs(images.astype(np.int64) - others))


def one_step(op: Op, parameters: Parameters, number: int) -> Steps:
    steps = Steps(np.full((number, 1), op, np.uint8), np.zeros((number, 1, MAX_PARAMETERS), np.float32))
    for place, values in enumerate(parameters):
        steps.parameters[:, 0, place] = values
    return steps


def matrix(random: np.random.Generator, number: int, size: int) -> Parameters:
    """In the 65536ths in which they are drawn."""
    rows = [random.uniform(-1.5, 1.5, (3, number)) * [[1], [1], [size / 1.5]] for _ in "xy"]
    return list(np.round(np.concatenate(rows) * 65536) / 65536)


def box(random: np.random.Generator, number: int, size: int) -> Parameters:
    corners = np.sort(random.permuted(np.tile(np.arange(size + 1), (2, number, 1)), axis=2)[..., :2])
    (left, right), (top, bottom) = corners.transpose(0, 2, 1)
    return [left, top, right, bottom]


def within(low: float, high: float) -> Draw:
    return lambda random, number, size: [random.uniform(low, high, number)]


def whole(low: int, high: int) -> Draw:
    return lambda random, number, size: [random.integers(low, high, number, endpoint=True)]


DRAWS: Mapping[Op, Draw] = {
    Op.NOTHING: lambda random, number, size: [],
    Op.WARP: matrix,
    Op.BRIGHTNESS: within(0, 2),
    Op.CONTRAST: within(0, 2),
    Op.COLOR: within(0, 2),
    Op.SHARPNESS: within(0, 2),
    Op.POSTERIZE: whole(0, 8),
    Op.SOLARIZE: within(0, 256),
    Op.AUTOCONTRAST: lambda random, number, size: [],
    Op.EQUALIZE: lambda random, number, size: [],
    Op.KEEP: box,
    Op.ERASE: lambda random, number, size: [*box(random, number, size), random.integers(0, 256, number)],
    Op.BLUR: within(0.1, 4),
    Op.JPEG: whole(1, 100),
}
assert set(DRAWS) == set(Op) - {Op.LOW_RESOLUTION}


@pytest.mark.parametrize("name", ["standins", "photographs", "odd_images"])
def test_every_operation_is_the_references(name: str, device: torch.device, request: pytest.FixtureRequest) -> None:
    images: Pixels = request.getfixturevalue(name)[:16]
    random = np.random.default_rng(0)
    steps = [one_step(op, draw(random, len(images), images.shape[1]), len(images)) for op, draw in DRAWS.items()]
    together = Steps(np.concatenate([one.ops for one in steps]), np.concatenate([one.parameters for one in steps]))
    results = executed(np.tile(images, (len(steps), 1, 1, 1)), together, [frozenset(DRAWS)], device)
    for op, one, result in zip(DRAWS, steps, np.split(results, len(steps)), strict=True):
        difference = off(result, plain(images, one))
        if op is Op.JPEG and device.type == "cuda":
            assert difference.mean() < GPU_JPEG_MEAN
        else:
            most, mean = TOLERANCES.get(op, (0, 0))
            assert difference.max() <= most, op
            assert difference.mean() <= mean, op


@pytest.mark.parametrize(("down", "up"), list(product(RESIZED, RESIZED)))
def test_low_resolution_is_the_references_nearly(down: int, up: int, standins: Pixels, device: torch.device) -> None:
    sides = np.arange(22, 112)  # all that AdaFace's set draws
    faces, number = standins[: len(sides)], len(sides)
    steps = one_step(Op.LOW_RESOLUTION, [sides, sides, np.full(number, down), np.full(number, up)], number)
    difference = off(executed(faces, steps, [frozenset({Op.LOW_RESOLUTION})], device), plain(faces, steps))
    of_sides = difference.mean((1, 2, 3))
    assert of_sides.mean() <= RESIZED[down][0] + RESIZED[up][1]
    assert of_sides.max() <= RESIZED_AT_WORST


def test_low_resolution_may_be_oblong(standins: Pixels, device: torch.device) -> None:
    sides = np.array([40, 80, 112, 30]), np.array([90, 40, 20, 112])
    linear = np.full(4, cv2.INTER_LINEAR)
    steps = one_step(Op.LOW_RESOLUTION, [*sides, linear, linear], 4)
    difference = off(
        executed(standins[:4], steps, [frozenset({Op.LOW_RESOLUTION})], device), plain(standins[:4], steps)
    )
    assert difference.max() <= 3


@pytest.mark.parametrize(("name", "faces"), [*product(CHAINS, ["standins"]), ("everything", "photographs")])
def test_a_whole_row_of_steps_is_the_references_nearly(
    name: str, faces: str, device: torch.device, request: pytest.FixtureRequest
) -> None:
    images: Pixels = request.getfixturevalue(faces)
    config = AugmentConfig.model_validate(CONFIGS[name])
    steps = draw_steps(config, 0, images.shape[1], np.arange(len(images)), np.zeros(len(images), np.int64))
    difference = off(executed(images, steps, possible_ops(config), device), plain(images, steps))
    mean, share = CHAINS[name]
    assert difference.mean() <= mean
    assert (difference > 2).mean() <= share


def test_an_image_does_not_depend_on_its_batch(standins: Pixels, device: torch.device) -> None:
    images, number = standins[:12], np.arange(12)
    config = AugmentConfig.model_validate({"low_resolution": 0.7, "blur": 0.5, "randaugment": {"operations": 1}})
    steps = draw_steps(config, 0, 112, number, number)
    together = executed(images, steps, possible_ops(config), device)
    for rows in (number[::-1], number[3:4], number[5:10]):
        part = Steps(steps.ops[rows], steps.parameters[rows])
        np.testing.assert_array_equal(executed(images[rows], part, possible_ops(config), device), together[rows])
