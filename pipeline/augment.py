"""Every random draw as a function of (seed, sample, pass, operation), for a whole batch at once.

So what happens to an image does not depend on batch size, world size, thread count or restarts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import permutations
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from pipeline.augment_config import (
    Affine,
    AugmentConfig,
    Blur,
    Crop,
    Erasing,
    Jpeg,
    LowResolution,
    Photometric,
    RandAugment,
    Range,
)
from pipeline.hashing import Words, derive_key, mix64
from pipeline.order import Ids
from pipeline.steps import MAX_PARAMETERS, Op, Steps

Draws = npt.NDArray[np.float64]
"""A number for each sample."""
Parameters = Sequence[float | Draws]
"""Of one operation, in the order that `Op` gives."""

ERASED = 128
NUM_BINS = 31
_PROPOSALS = 10
_WARP_GRID = 1 << 16
_INTERPOLATIONS: Draws = np.array(
    [cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_LANCZOS4], np.float64
)


def uniform(seed: int, operation: str, sample_ids: Ids, passes: Ids) -> Draws:
    """Return a draw from [0, 1) for each sample in its pass, independent between operations."""
    key: Words = np.full(1, derive_key(seed, "augment", operation), np.uint64)
    words = mix64(mix64(sample_ids.astype(np.uint64) ^ key) ^ passes.astype(np.uint64))
    return np.asarray(words >> np.uint64(11), np.float64) * 2.0**-53


def draw_steps(config: AugmentConfig, seed: int, image_size: int, sample_ids: Ids, passes: Ids) -> Steps:
    """Return what happens to each sample in its pass, as an image of `image_size` x `image_size`.

    Steps come in the order of `AugmentConfig`'s fields; those that cannot happen are not in the row.
    """
    samples = _Samples(seed, image_size, sample_ids, passes)
    parts = [_nothing(len(samples), 0), *(stage.draw(samples) for stage in _stages(config))]
    return Steps(np.concatenate([part.ops for part in parts], 1), np.concatenate([p.parameters for p in parts], 1))


def possible_ops(config: AugmentConfig) -> list[frozenset[Op]]:
    """Return the operations that each step of a row may be."""
    return [ops for stage in _stages(config) for ops in stage.ops]


def join_steps(parts: Sequence[tuple[npt.NDArray[np.integer[Any]], Steps]], batch: int) -> Steps:
    """Return one batch's steps, given (rows of the batch, their steps) for each set in it."""
    joined = _nothing(batch, max((steps.ops.shape[1] for _, steps in parts), default=0))
    for rows, steps in parts:
        joined.ops[rows, : steps.ops.shape[1]] = steps.ops
        joined.parameters[rows, : steps.ops.shape[1]] = steps.parameters
    return joined


@dataclass(frozen=True)
class _Samples:
    """Samples in their passes: what draws are made for."""

    seed: int
    size: int
    """Side of their images in pixels."""
    ids: Ids
    passes: Ids

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, rows: npt.NDArray[np.intp]) -> "_Samples":
        return _Samples(self.seed, self.size, self.ids[rows], self.passes[rows])

    def between(self, name: str, low: float, high: float) -> Draws:
        return low + (high - low) * uniform(self.seed, name, self.ids, self.passes)

    def below(self, name: str, end: int | Draws) -> npt.NDArray[np.int64]:
        """Draw one of the whole numbers 0, 1, ... below an end."""
        return (uniform(self.seed, name, self.ids, self.passes) * end).astype(np.int64)


_Draw = Callable[[_Samples], Steps]


class _Stage:
    """The steps that one field of the configuration stands for; `ops`: what each of them may be."""

    def __init__(self, name: str, probability: float, ops: Sequence[frozenset[Op]], draw: _Draw) -> None:
        self.ops = [each | {Op.NOTHING} if probability < 1 else each for each in ops]
        self._name, self._probability, self._draw = name, probability, draw

    def draw(self, samples: _Samples) -> Steps:
        rows = np.flatnonzero(samples.between(self._name, 0, 1) < self._probability)
        drawn = self._draw(samples.at(rows))
        steps = _nothing(len(samples), len(self.ops))
        steps.ops[rows], steps.parameters[rows] = drawn.ops, drawn.parameters
        return steps


def _stages(config: AugmentConfig) -> Iterator[_Stage]:
    for name, value in config:
        if name == "randaugment":
            if value is not None:
                yield _Stage(name, 1, [frozenset(_RANDAUGMENT)] * value.operations, partial(_randaugment, value))
            continue
        probability = value if name == "flip" else value.probability
        if probability and name == "photometric":
            yield _Stage(name, probability, [_PHOTOMETRIC_OPS] * 3, partial(_photometric, value))
        elif probability:
            op, draw = _SINGLE[name]
            yield _Stage(name, probability, [frozenset({op})], partial(_single, op, partial(draw, value)))


def _single(op: Op, draw: Callable[[_Samples], Parameters], samples: _Samples) -> Steps:
    return _steps(np.full((len(samples), 1), op), [draw(samples)])


def _flip(_: float, samples: _Samples) -> Parameters:
    return _warp(-1, 0, samples.size - 1, 0, 1, 0)


def _affine(config: Affine, samples: _Samples) -> Parameters:
    degrees = samples.between("affine.degrees", -config.degrees, config.degrees)
    shifts = [samples.between(f"affine.{axis}", -1, 1) * config.translate * samples.size for axis in "xy"]
    return _turned(samples.size, degrees, samples.between("affine.scale", *config.scale), *shifts)


def _crop(config: Crop, samples: _Samples) -> Parameters:
    return _box(samples, "crop", config.scale, config.ratio)


def _low_resolution(config: LowResolution, samples: _Samples) -> Parameters:
    side = np.floor(samples.between("low_resolution.scale", *config.scale) * samples.size)
    down, up = (samples.below(f"low_resolution.{way}", len(_INTERPOLATIONS)) for way in ("down", "up"))
    side = np.asarray(np.maximum(side, 1), np.float64)
    return [side, side, _INTERPOLATIONS[down], _INTERPOLATIONS[up]]


def _grayscale(_: object, __: _Samples) -> Parameters:
    return [0.0]


def _blur(config: Blur, samples: _Samples) -> Parameters:
    return [samples.between("blur.sigma", *config.sigma)]


def _jpeg(config: Jpeg, samples: _Samples) -> Parameters:
    low, high = config.quality
    return [np.floor(samples.between("jpeg.quality", low, high + 1))]


def _erasing(config: Erasing, samples: _Samples) -> Parameters:
    return [*_box(samples, "erasing", config.scale, config.ratio), ERASED]


_SINGLE: Mapping[str, tuple[Op, Callable[[Any, _Samples], Parameters]]] = {
    "flip": (Op.WARP, _flip),
    "affine": (Op.WARP, _affine),
    "crop": (Op.KEEP, _crop),
    "low_resolution": (Op.LOW_RESOLUTION, _low_resolution),
    "grayscale": (Op.COLOR, _grayscale),
    "blur": (Op.BLUR, _blur),
    "jpeg": (Op.JPEG, _jpeg),
    "erasing": (Op.ERASE, _erasing),
}


def _box(samples: _Samples, name: str, scale: Range, ratio: Range) -> Parameters:
    """Draw left, top, right, bottom as torchvision's `RandomResizedCrop.get_params` does.

    So the first of ten proposals that fits into the image; in the end one that does not, cut to it.
    """
    width = height = np.full(len(samples), np.inf)
    for number in range(_PROPOSALS):
        fits = np.maximum(width, height) <= samples.size
        if fits.all():
            break
        area = samples.between(f"{name}.area.{number}", *scale) * samples.size**2
        shape = np.exp(samples.between(f"{name}.ratio.{number}", *np.log(ratio)))
        width = np.where(fits, width, np.round(np.sqrt(area * shape)))
        height = np.where(fits, height, np.round(np.sqrt(area / shape)))
    width, height = np.clip([width, height], 1, samples.size)
    left = samples.below(f"{name}.left", samples.size - width + 1)
    top = samples.below(f"{name}.top", samples.size - height + 1)
    return [left, top, left + width, top + height]


_PHOTOMETRIC = [Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR]
_PHOTOMETRIC_OPS = frozenset(_PHOTOMETRIC)
_ORDERS = np.array(list(permutations(range(3))))


def _photometric(config: Photometric, samples: _Samples) -> Steps:
    changes = {"brightness": config.brightness, "contrast": config.contrast, "saturation": config.saturation}
    factors = [samples.between(f"photometric.{name}", 1 - most, 1 + most) for name, most in changes.items()]
    order = _ORDERS[samples.below("photometric.order", len(_ORDERS))]
    ordered = np.take_along_axis(np.stack(factors, 1), order, 1)
    return _steps(np.take(_PHOTOMETRIC, order), [[factor] for factor in ordered.T])


_RANDAUGMENT = [
    Op.NOTHING,
    *(Op.WARP, Op.WARP, Op.WARP),  # shear, shift, rotation
    *(Op.BRIGHTNESS, Op.COLOR, Op.CONTRAST, Op.SHARPNESS),
    *(Op.POSTERIZE, Op.SOLARIZE, Op.AUTOCONTRAST, Op.EQUALIZE),
    Op.COLOR,  # to grayscale
]


def _randaugment(config: RandAugment, samples: _Samples) -> Steps:
    """Draw as Fraunhofer's `RandAugment` does: the operation, then its bin from 1 to the magnitude, then its sign."""
    names = [f"randaugment.{number}" for number in range(config.operations)]
    kind = np.stack([samples.below(f"{name}.operation", len(_RANDAUGMENT)) for name in names], 1)
    bins = np.stack([samples.below(f"{name}.bin", config.magnitude) + 1 for name in names], 1)
    sign = np.stack([samples.below(f"{name}.sign", 2) for name in names], 1)
    return Steps(np.array(_RANDAUGMENT, np.uint8)[kind], _randaugment_table(samples.size)[kind, bins, sign])


@lru_cache
def _randaugment_table(size: int) -> npt.NDArray[np.float32]:
    """Return the parameters `[operations, bins, signs, MAX_PARAMETERS]` of `_RANDAUGMENT`.

    Magnitudes and what they mean are those of torchvision's `RandAugment`, as it is for PIL images;
    Fraunhofer left out what moves faces up or down, and put in grayscale.
    """
    signs = [1, -1]
    shear = _bins(0, 0.3) * signs
    parameters: list[Parameters] = [
        [],
        _warp(1, shear, shear / 2, 0, 1, 0),  # about the image's upper edge
        _warp(1, 0, -np.trunc(_bins(0, 150 / 331 * size) * signs), 0, 1, 0),
        _turned(size, _bins(0, 30) * signs, 1, 0, 0),
        *[[1 + _bins(0, 0.9) * signs]] * 4,
        [8 - np.round(_bins(0, 4))],
        [_bins(255, 0)],
        *[[]] * 3,
    ]
    table = np.zeros((len(_RANDAUGMENT), NUM_BINS, 2, MAX_PARAMETERS), np.float32)
    for row, values in zip(table, parameters, strict=True):
        for place, value in enumerate(values):
            row[..., place] = value
    return table


def _bins(first: float, last: float) -> Draws:
    """Return `[bins, 1]`: even steps in single precision, whose roundings torchvision's images show."""
    return np.asarray(torch.linspace(first, last, NUM_BINS), np.float64)[:, None]


def _turned(size: int, degrees: Draws, scale: float | Draws, right: float | Draws, down: float | Draws) -> Parameters:
    """Return the warp that turns anticlockwise and scales about the centre, then shifts by so many pixels."""
    centre, angle = (size - 1) / 2, np.deg2rad(degrees)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    x, y = -centre - right, -centre - down
    return _warp(cos, -sin, centre + cos * x - sin * y, sin, cos, centre + sin * x + cos * y)


def _warp(*matrix: float | Draws) -> Parameters:
    """Return the matrix in the 65536ths in which Pillow calculates: ties between pixels are ties for everyone."""
    return [np.floor(np.asarray(value, np.float64) * _WARP_GRID + 0.5) / _WARP_GRID for value in matrix]


def _nothing(batch: int, steps: int) -> Steps:
    return Steps(np.zeros((batch, steps), np.uint8), np.zeros((batch, steps, MAX_PARAMETERS), np.float32))


def _steps(ops: npt.NDArray[Any], parameters: Sequence[Parameters]) -> Steps:
    """Return steps given their operations `[batch, steps]` and each step's parameters."""
    steps = _nothing(*ops.shape)
    steps.ops[:] = ops
    for number, values in enumerate(parameters):
        for place, value in enumerate(values):
            steps.parameters[:, number, place] = value
    return steps
