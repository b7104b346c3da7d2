"""What each operation does to one image, in plain NumPy: slow and obvious, the oracle of what is fast.

Whatever Pillow has too is Pillow's bit for bit, roundings included.
"""

from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.steps import Op

Image = npt.NDArray[np.uint8]
"""`[height, width, 3]`, RGB."""
Parameters = Sequence[float]


def apply(image: Image, ops: Sequence[int], parameters: Sequence[Parameters]) -> Image:
    """Return the image after all its steps, one after the other."""
    for op, values in zip(ops, parameters, strict=True):
        image = OPERATIONS[op](image, values)
    return image


def luma(image: Image) -> Image:
    """Return `[height, width]`: grey as `PIL.Image.convert("L")` has it."""
    red, green, blue = np.moveaxis(image.astype(np.int64), -1, 0)
    return np.asarray((19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16, np.uint8)


def blend(base: npt.NDArray[np.uint8], image: npt.NDArray[np.uint8], factor: float) -> npt.NDArray[np.uint8]:
    """Return base + factor (image - base) as `PIL.Image.blend` does: in single precision, cut to what it can be."""
    change = factor * (image.astype(np.float32) - base)
    return np.asarray(np.clip(base + change, 0, 255), np.uint8)


def _nothing(image: Image, _: Parameters) -> Image:
    return image


def _warp(image: Image, values: Parameters) -> Image:
    (a, b, c, d, e, f), (height, width) = values, image.shape[:2]
    y, x = np.mgrid[:height, :width]
    column = np.floor(a * x + b * y + c + 0.5).astype(np.int64)
    row = np.floor(d * x + e * y + f + 0.5).astype(np.int64)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    warped = np.zeros_like(image)
    warped[inside] = image[row[inside], column[inside]]
    return warped


def _brightness(image: Image, values: Parameters) -> Image:
    return blend(np.zeros_like(image), image, values[0])


def _contrast(image: Image, values: Parameters) -> Image:
    mean = int(luma(image).mean() + 0.5)
    return blend(np.full_like(image, mean), image, values[0])


def _color(image: Image, values: Parameters) -> Image:
    return blend(np.repeat(luma(image)[..., None], 3, -1), image, values[0])


def _sharpness(image: Image, values: Parameters) -> Image:
    """Smooth with 1/13 of the 3x3 around a pixel, which itself counts five times; the edge stays as it is."""
    (height, width), wide = image.shape[:2], image.astype(np.int64)
    around = [wide[y : y + height - 2, x : x + width - 2] for y in range(3) for x in range(3)]
    smooth = image.copy()
    smooth[1:-1, 1:-1] = np.floor((sum(around) + 4 * wide[1:-1, 1:-1]) / 13 + 0.5)
    return blend(smooth, image, values[0])


def _posterize(image: Image, values: Parameters) -> Image:
    step = 1 << (8 - int(values[0]))
    return (image.astype(np.int64) // step * step).astype(np.uint8)


def _solarize(image: Image, values: Parameters) -> Image:
    return np.where(image < values[0], image, 255 - image)


def _autocontrast(image: Image, _: Parameters) -> Image:
    return _by_channel(image, _stretched)


def _stretched(channel: Image) -> Image:
    low, high = int(channel.min()), int(channel.max())
    if low == high:
        return channel
    scale = 255.0 / (high - low)
    return np.asarray(np.clip(channel * scale - low * scale, 0, 255), np.uint8)


def _equalize(image: Image, _: Parameters) -> Image:
    return _by_channel(image, _equalized)


def _equalized(channel: Image) -> Image:
    counts = np.bincount(channel.ravel(), minlength=256)
    step = (channel.size - counts[channel.max()]) // 255
    if step == 0:
        return channel
    below = np.cumsum(counts) - counts
    table = np.minimum((step // 2 + below) // step, 255)
    return np.asarray(table[channel], np.uint8)


def _by_channel(image: Image, change: Callable[[Image], Image]) -> Image:
    return np.stack([change(channel) for channel in np.moveaxis(image, -1, 0)], -1)


def _keep(image: Image, values: Parameters) -> Image:
    left, top, right, bottom = map(int, values[:4])
    kept = np.zeros_like(image)
    kept[top:bottom, left:right] = image[top:bottom, left:right]
    return kept


def _erase(image: Image, values: Parameters) -> Image:
    left, top, right, bottom, value = map(int, values[:5])
    erased = image.copy()
    erased[top:bottom, left:right] = value
    return erased


def _low_resolution(image: Image, values: Parameters) -> Image:
    (width, height, down, up), (full_height, full_width) = map(int, values[:4]), image.shape[:2]
    small = cv2.resize(image, (width, height), interpolation=down)
    return np.asarray(cv2.resize(small, (full_width, full_height), interpolation=up), np.uint8)


def _blur(image: Image, values: Parameters) -> Image:
    """Blur with a kernel that reaches three sigmas far, mirrored at the edge."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), values[0]), np.uint8)


def _jpeg(image: Image, values: Parameters) -> Image:
    """Encode with half the resolution in colour, as OpenCV does, and decode."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, int(values[0])])
    return np.asarray(cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), np.uint8)


OPERATIONS: Mapping[int, Callable[[Image, Parameters], Image]] = {
    Op.NOTHING: _nothing,
    Op.WARP: _warp,
    Op.BRIGHTNESS: _brightness,
    Op.CONTRAST: _contrast,
    Op.COLOR: _color,
    Op.SHARPNESS: _sharpness,
    Op.POSTERIZE: _posterize,
    Op.SOLARIZE: _solarize,
    Op.AUTOCONTRAST: _autocontrast,
    Op.EQUALIZE: _equalize,
    Op.KEEP: _keep,
    Op.ERASE: _erase,
    Op.LOW_RESOLUTION: _low_resolution,
    Op.BLUR: _blur,
    Op.JPEG: _jpeg,
}
