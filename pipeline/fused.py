"""The steps of batches on CPUs: each operation in the fewest passes that OpenCV has for it, in a pool of threads.

What is a table of 256 levels in theory is arithmetic here: a look-up costs 20 us, a scaling 5 and a mask 2, so only
EQUALIZE is looked up, and joining runs of tables would cost more than it saves. Warps are not composed, for what leaves
the image in one must not come back in the next.

Every operation gives what `pipeline.reference` gives, bit for bit, but that a value may lie one level beside it: where
a blend or a stretch falls within 0.0001 of a whole number, and where a grey does, as 0.13 % of the colours do. (After
RandAugment(4, 16) 0.1 % of the values of real faces differ.) In images larger than 112 pixels a warp takes the second
nearest pixel about once in 100,000.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil

import cv2
import numpy as np
import numpy.typing as npt

from pipeline import reference
from pipeline.reference import Image, Parameters
from pipeline.steps import Op, Steps

_CHUNK = 16  # images that a thread takes at a time
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
_CUT = -0.4999  # so that rounding is cutting, also where a whole number comes out a little smaller
_TIES_UP = np.array([0, 0, 2.0**-17, 0, 0, 2.0**-17])
_LEVELS = np.arange(256, dtype=np.uint8)


def apply_steps(
    images: npt.NDArray[np.uint8],
    steps: Steps,
    out: npt.NDArray[np.uint8] | None = None,
    pool: ThreadPoolExecutor | None = None,
) -> npt.NDArray[np.uint8]:
    """Return `[batch, height, width, 3]` after the steps: in `out`, or in place when there is none."""
    target = images if out is None else out
    rows = list(zip(steps.ops.tolist(), steps.parameters.tolist(), strict=True))

    def run(start: int) -> None:
        scratch = np.empty((2, *images.shape[1:]), np.uint8)
        for number in range(start, min(start + _CHUNK, len(rows))):
            changed = _apply(images[number], *rows[number], scratch)
            if out is not None or any(rows[number][0]):
                target[number] = changed

    starts = range(0, len(rows), _CHUNK)
    for _ in map(run, starts) if pool is None else pool.map(run, starts):
        pass
    return target


def _apply(image: Image, ops: Sequence[int], parameters: Sequence[Parameters], scratch: npt.NDArray[np.uint8]) -> Image:
    """Return the image after its steps; it may lie in `scratch`, whose two images take turns.

    New memory for every step would cost more than many a step: it is given back to the system and taken again.
    """
    turn = 0
    for op, values in zip(ops, parameters, strict=True):
        if op:
            image = _OPERATIONS[op](image, values, scratch[turn])
            turn = 1 - turn
    return image


def _luma(image: Image) -> npt.NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def _warp(image: Image, values: Parameters, out: Image) -> Image:
    a, b, right, d, e, down = values
    if (a, b, d, e, down) == (1, 0, 0, 1, 0) and right.is_integer():
        return _shifted(image, int(right), out)
    if (a, b, d, e, down, right) == (-1, 0, 0, 1, 0, image.shape[1] - 1):
        return np.asarray(cv2.flip(image, 1, out), np.uint8)
    matrix = (np.array(values) + _TIES_UP).reshape(2, 3)
    size = image.shape[1], image.shape[0]
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image, matrix, size, out, flags), np.uint8)


def _shifted(image: Image, right: int, out: Image) -> Image:
    out[:] = 0
    width = max(0, image.shape[1] - abs(right))
    out[:, max(0, -right) :][:, :width] = image[:, max(0, right) :][:, :width]
    return out


def _brightness(image: Image, values: Parameters, out: Image) -> Image:
    return np.asarray(cv2.convertScaleAbs(image, out, values[0], _CUT), np.uint8)


def _contrast(image: Image, values: Parameters, out: Image) -> Image:
    factor, mean = values[0], int(cv2.mean(_luma(image))[0] + 0.5)
    return np.asarray(cv2.addWeighted(image, factor, image, 0, mean * (1 - factor) + _CUT, out), np.uint8)


def _color(image: Image, values: Parameters, out: Image) -> Image:
    grey = cv2.cvtColor(_luma(image), cv2.COLOR_GRAY2RGB, out)
    return _blended(out, image, values[0]) if values[0] else np.asarray(grey, np.uint8)


def _sharpness(image: Image, values: Parameters, out: Image) -> Image:
    cv2.filter2D(image, -1, _SMOOTH, out)
    sharp = _blended(out, image, values[0])
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        sharp[edge] = image[edge]
    return sharp


def _blended(base: Image, image: Image, factor: float) -> Image:
    """Return the blend in the place of its base."""
    return np.asarray(cv2.addWeighted(image, factor, base, 1 - factor, _CUT, base), np.uint8)


def _posterize(image: Image, values: Parameters, out: Image) -> Image:
    return np.bitwise_and(image, np.uint8(0xFF00 >> int(values[0]) & 0xFF), out)


def _solarize(image: Image, values: Parameters, out: Image) -> Image:
    cv2.threshold(image, ceil(values[0]) - 1, 255, cv2.THRESH_BINARY, out)
    return np.bitwise_xor(image, out, out)


def _autocontrast(image: Image, _: Parameters, out: Image) -> Image:
    rows = image.reshape(len(image), -1)
    low, high = (ends.reduce(ends.reduce(rows).reshape(-1, 3)).tolist() for ends in (np.minimum, np.maximum))
    stretch = np.zeros((3, 4))
    for channel, (darkest, brightest) in enumerate(zip(low, high, strict=True)):
        scale = 255 / (brightest - darkest) if darkest < brightest else 1
        stretch[channel, channel] = scale
        stretch[channel, 3] = _CUT - (darkest * scale if darkest < brightest else 0)
    return np.asarray(cv2.transform(image, stretch, out), np.uint8)


def _equalize(image: Image, _: Parameters, out: Image) -> Image:
    table = np.empty((1, 256, 3), np.uint8)
    for channel in range(3):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int32)
        below = counts.cumsum(dtype=np.int32) - counts
        step = int(below[counts.nonzero()[0][-1]]) // 255
        table[0, :, channel] = np.minimum((below + step // 2) // step, 255) if step else _LEVELS
    return np.asarray(cv2.LUT(image, table, out), np.uint8)


def _plain(operation: Callable[[Image, Parameters], Image]) -> Callable[[Image, Parameters, Image], Image]:
    return lambda image, values, out: operation(image, values)


_OPERATIONS: Mapping[int, Callable[[Image, Parameters, Image], Image]] = {
    **{op: _plain(operation) for op, operation in reference.OPERATIONS.items()},
    Op.WARP: _warp,
    Op.BRIGHTNESS: _brightness,
    Op.CONTRAST: _contrast,
    Op.COLOR: _color,
    Op.SHARPNESS: _sharpness,
    Op.POSTERIZE: _posterize,
    Op.SOLARIZE: _solarize,
    Op.AUTOCONTRAST: _autocontrast,
    Op.EQUALIZE: _equalize,
}
