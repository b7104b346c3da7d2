"""The steps of batches on CPUs: OpenCV in a pool of threads, and a run of tables as one look-up.

Every operation gives what `pipeline.reference` gives, bit for bit, but for COLOR and SHARPNESS: there a value may lie
one level beside it, where the blend falls within 0.0001 of a whole number. Grey does for 136 of the 2^24 colours, with
which the mean of CONTRAST may, too, round to the next level. In images larger than 112 pixels a warp takes the second
nearest pixel about once in 100,000. Warps are not composed: what leaves the image in one must not come back later.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import numpy.typing as npt

from pipeline import reference
from pipeline.reference import Image, Parameters
from pipeline.steps import Op, Steps

Table = npt.NDArray[np.uint8]
"""What each level becomes: `[256]`, or `[256, 3]` by channel."""

_CHUNK = 16  # images that a thread takes at a time
_LUMA = np.array([[19595, 38470, 7471]]) / (1 << 16)
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
        for number in range(start, min(start + _CHUNK, len(rows))):
            changed = _apply(images[number], *rows[number])
            if out is not None or any(rows[number][0]):
                target[number] = changed

    starts = range(0, len(rows), _CHUNK)
    for _ in map(run, starts) if pool is None else pool.map(run, starts):
        pass
    return target


def _apply(image: Image, ops: Sequence[int], parameters: Sequence[Parameters]) -> Image:
    table: Table | None = None  # still to be looked up
    for op, values in zip(ops, parameters, strict=True):
        if op in _TABLES:
            then = _TABLES[op](values)
            table = then if table is None else then[table]
        elif op in _TABLES_OF_IMAGES:
            image = _looked_up(image, table)
            table = _TABLES_OF_IMAGES[op](image, values)
        elif op:
            image, table = _IMAGES[op](_looked_up(image, table), values), None
    return _looked_up(image, table)


def _looked_up(image: Image, table: Table | None) -> Image:
    return image if table is None else np.asarray(cv2.LUT(image, table[None]), np.uint8)


def _luma(image: Image) -> Image:
    return np.asarray(cv2.transform(image, _LUMA), np.uint8)


def _blend(base: Image, image: Image, factor: float) -> Image:
    return np.asarray(cv2.addWeighted(image, factor, base, 1 - factor, _CUT), np.uint8)


def _warp(image: Image, values: Parameters) -> Image:
    a, b, right, d, e, down = values
    if (a, b, d, e, down) == (1, 0, 0, 1, 0) and right.is_integer():
        return _shifted(image, int(right))
    if (a, b, d, e, down, right) == (-1, 0, 0, 1, 0, image.shape[1] - 1):
        return np.asarray(cv2.flip(image, 1), np.uint8)
    matrix = (np.array(values) + _TIES_UP).reshape(2, 3)
    size = image.shape[1], image.shape[0]
    return np.asarray(cv2.warpAffine(image, matrix, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP), np.uint8)


def _shifted(image: Image, right: int) -> Image:
    shifted = np.zeros_like(image)
    width = max(0, image.shape[1] - abs(right))
    shifted[:, max(0, -right) :][:, :width] = image[:, max(0, right) :][:, :width]
    return shifted


def _color(image: Image, values: Parameters) -> Image:
    grey = np.asarray(cv2.cvtColor(_luma(image), cv2.COLOR_GRAY2RGB), np.uint8)
    return _blend(grey, image, values[0]) if values[0] else grey


def _sharpness(image: Image, values: Parameters) -> Image:
    sharp = _blend(np.asarray(cv2.filter2D(image, -1, _SMOOTH), np.uint8), image, values[0])
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        sharp[edge] = image[edge]
    return sharp


def _brightness(values: Parameters) -> Table:
    return reference.blend(np.zeros_like(_LEVELS), _LEVELS, values[0])


def _posterize(values: Parameters) -> Table:
    return _LEVELS & np.uint8(0xFF00 >> int(values[0]) & 0xFF)


def _solarize(values: Parameters) -> Table:
    return np.where(values[0] > _LEVELS, _LEVELS, 255 - _LEVELS)


def _contrast(image: Image, values: Parameters) -> Table:
    mean = int(cv2.mean(_luma(image))[0] + 0.5)
    return reference.blend(np.full_like(_LEVELS, mean), _LEVELS, values[0])


def _autocontrast(image: Image, _: Parameters) -> Table:
    ends = [cv2.minMaxLoc(channel)[:2] for channel in cv2.split(image)]
    scales = [255 / (high - low) if low < high else 1 for low, high in ends]
    offsets = [-low * scale if low < high else 0 for (low, high), scale in zip(ends, scales, strict=True)]
    return np.asarray(np.clip(_LEVELS[:, None] * scales + offsets, 0, 255), np.uint8)


def _equalize(image: Image, _: Parameters) -> Table:
    table = np.empty((256, 3), np.uint8)
    for channel in range(3):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int32)
        below = counts.cumsum(dtype=np.int32) - counts
        step = int(below[counts.nonzero()[0][-1]]) // 255
        table[:, channel] = np.minimum((below + step // 2) // step, 255) if step else _LEVELS
    return table


_TABLES: Mapping[int, Callable[[Parameters], Table]] = {
    Op.BRIGHTNESS: _brightness,
    Op.POSTERIZE: _posterize,
    Op.SOLARIZE: _solarize,
}
_TABLES_OF_IMAGES: Mapping[int, Callable[[Image, Parameters], Table]] = {
    Op.CONTRAST: _contrast,
    Op.AUTOCONTRAST: _autocontrast,
    Op.EQUALIZE: _equalize,
}
_IMAGES: Mapping[int, Callable[[Image, Parameters], Image]] = {
    **reference.OPERATIONS,
    Op.WARP: _warp,
    Op.COLOR: _color,
    Op.SHARPNESS: _sharpness,
}
