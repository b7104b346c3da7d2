"""Drawn steps as DALI operators: what `pipeline.reference` does to an image, done to batches, on GPUs and CPUs.

Every step of the graph has a branch for each operation that it may be, and DALI's conditional execution
sends each image through its own. Arithmetic follows Pillow's down to its rounding. What DALI has no operator for
comes close: EQUALIZE to a level, BLUR to two, LOW_RESOLUTION to one or two in the mean (at some sides four; by nearest
exactly but at 8 of 90 sides), JPEG on GPUs; tests/pipeline/test_graph_steps.py holds the tolerances.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from nvidia.dali import fn, math, types

from pipeline.steps import MAX_PARAMETERS, Op, Steps

Node = Any
"""Of a graph: images `[size, size, 3] uint8`, or a step's arguments `[NUM_ARGUMENTS] float32` on the CPU."""

Column = npt.NDArray[Any]
"""A parameter of some steps, a number for each."""
Columns = Sequence[Column]

NUM_ARGUMENTS = 9

_GRAY = np.array([19595, 38470, 7471], np.int32)  # 65536ths: Pillow's convert("L")
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's ImageFilter.SMOOTH
_FILTERS = np.array(  # by OpenCV's codes: nearest, linear, cubic, area, Lanczos
    [types.INTERP_NN, types.INTERP_LINEAR, types.INTERP_CUBIC, types.INTERP_LINEAR, types.INTERP_LANCZOS3], np.int32
)
_JUST_INSIDE = 2.0**-10  # pixels: enough for float32, and less than any position is away from the next pixel


def apply_steps(images: Node, steps: Node, possible_ops: Sequence[frozenset[Op]], size: int) -> Node:
    """Return the images `[size, size, 3] uint8` after their steps; needs a graph with `enable_conditionals`.

    `steps` is a row of `step_arguments` per image; `possible_ops` what each step may be.
    """
    for number, ops in enumerate(possible_ops):
        given = steps[number]
        code = given[NUM_ARGUMENTS]
        for op in sorted(ops - {Op.NOTHING}):
            if code == int(op):
                images = _OPERATIONS[op](images, given, size)
    return images


def step_arguments(steps: Steps, size: int) -> npt.NDArray[np.float32]:
    """Return `[batch, steps, NUM_ARGUMENTS + 1]`: the parameters in DALI's terms, then the `Op` code."""
    arguments = np.zeros((*steps.ops.shape, NUM_ARGUMENTS + 1), np.float32)
    arguments[..., :MAX_PARAMETERS] = steps.parameters
    arguments[..., NUM_ARGUMENTS] = steps.ops
    for op, translate in _TRANSLATIONS.items():
        rows = steps.ops == op
        translated = translate(size, *steps.parameters[rows].T)
        arguments[rows, : len(translated)] = np.stack(translated, 1)
    return arguments


def _warp_arguments(_: int, a: Column, b: Column, c: Column, d: Column, e: Column, f: Column) -> Columns:
    """Let coordinates begin at the first pixel's corner, as DALI does, instead of its centre."""
    return [a, b, c + 0.5 - (a + b) / 2, d, e, f + 0.5 - (d + e) / 2]


def _posterize_arguments(_: int, bits: Column, *__: Column) -> Columns:
    return [256 - 2 ** (8 - bits)]


def _box_arguments(_: int, left: Column, top: Column, right: Column, bottom: Column, *__: Column) -> Columns:
    return [top, left, bottom - top, right - left]


def _resize_arguments(size: int, width: Column, height: Column, down: Column, up: Column, *_: Column) -> Columns:
    """Return height, width, filters down and up, whether down by area, and shifts of the grid (y, x) down and up.

    For the nearest, DALI takes the pixel below an output pixel's centre, OpenCV the one below its corner.
    """
    low = np.stack([height, width])
    shift_down = np.where(down == cv2.INTER_NEAREST, size / low / 2 - _JUST_INSIDE, 0)
    shift_up = np.where(up == cv2.INTER_NEAREST, low / size / 2 - _JUST_INSIDE, 0)
    by_area = np.where(height * 2 < size, types.INTERP_NN, types.INTERP_LINEAR)  # OpenCV's lies between the two
    filter_up = np.where(up == cv2.INTER_AREA, by_area, _FILTERS[up.astype(int)])
    return [*low, _FILTERS[down.astype(int)], filter_up, down == cv2.INTER_AREA, *shift_down, *shift_up]


_TRANSLATIONS: Mapping[Op, Callable[..., Columns]] = {
    Op.WARP: _warp_arguments,
    Op.POSTERIZE: _posterize_arguments,
    Op.KEEP: _box_arguments,
    Op.ERASE: _box_arguments,
    Op.LOW_RESOLUTION: _resize_arguments,
}


def _warp(images: Node, given: Node, _: int) -> Node:
    matrix = fn.reshape(given[:6], shape=[2, 3])
    return fn.warp_affine(images, matrix=matrix, fill_value=0, interp_type=types.INTERP_NN)


def _brightness(images: Node, given: Node, _: int) -> Node:
    return _cut(images * _beside(images, given[0]))


def _contrast(images: Node, given: Node, _: int) -> Node:
    mean = fn.reductions.mean(_gray(images), axes=[0, 1], keep_dims=True)
    return _blend(math.floor(mean + 0.5), images, given)


def _color(images: Node, given: Node, _: int) -> Node:
    return _blend(_gray(images), images, given)


def _sharpness(images: Node, given: Node, size: int) -> Node:
    inner = np.zeros((size, size, 1), np.float32)
    inner[1:-1, 1:-1] = 1
    smooth = math.floor(fn.filter(images, _constant(images, _SMOOTH), dtype=types.FLOAT) + 0.5)
    edge_as_it_is = images + (smooth - images) * _constant(images, inner)
    return _blend(edge_as_it_is, images, given)


def _posterize(images: Node, given: Node, _: int) -> Node:
    return images & fn.cast(_beside(images, given[0]), dtype=types.UINT8)


def _solarize(images: Node, given: Node, _: int) -> Node:
    bright = fn.cast(images >= _beside(images, given[0]), dtype=types.UINT8)
    return images ^ (bright * _uint8(255))


def _autocontrast(images: Node, _: Node, __: int) -> Node:
    low, high = _extremes(images)
    width = fn.cast(high - low, dtype=types.FLOAT64)  # Pillow calculates in double, and its cutting off shows it
    flat = width == 0
    scale = 255.0 / (width + flat * 255.0)  # 1 where flat
    return _cut(images * scale - low * (flat ^ True) * scale)


def _equalize(images: Node, _: Node, __: int) -> Node:
    """DALI's follows OpenCV: 255 (pixels to here - lowest's) / (all - lowest's). Pillow counts pixels below here.

    Turned over, that is 255 below / (all - highest's), and only Pillow's whole-numbered step is left to correct.
    """
    _, high = _extremes(images)
    spread = fn.reductions.sum(fn.cast(images < high, dtype=types.INT32), axes=[0, 1], keep_dims=True)
    step = spread // 255
    flat = step == 0
    even = fn.equalize(images ^ _uint8(255)) ^ _uint8(255)
    equalized = even * spread / (255 * (step + flat)) + 0.5
    return _cut(images * flat + equalized * (flat ^ True))


def _keep(images: Node, given: Node, size: int) -> Node:
    corner = fn.cast(given[:2], dtype=types.INT32)
    box = fn.slice(images, start=corner, shape=fn.cast(given[2:4], dtype=types.INT32), axes=[0, 1])
    return fn.slice(box, start=-corner, shape=[size, size], axes=[0, 1], out_of_bounds_policy="pad")


def _erase(images: Node, given: Node, _: int) -> Node:
    return fn.erase(images, anchor=given[:2], shape=given[2:4], fill_value=given[4:5], axis_names="HW")


def _low_resolution(images: Node, given: Node, size: int) -> Node:
    low, shift_down, shift_up = given[:2], given[5:7], given[7:9]
    if given[4] > 0:
        small = fn.resize(images, size=low, interp_type=types.INTERP_LINEAR, antialias=True)
    else:
        small = _resized(images, low, given[2], -shift_down, float(size) - shift_down)
    return _resized(small, [size, size], given[3], -shift_up, low - shift_up)


def _resized(images: Node, size: Node, kind: Node, start: Node, end: Node) -> Node:
    kind = fn.cast(fn.cast(kind, dtype=types.INT32), dtype=types.INTERP_TYPE)
    return fn.resize(images, size=size, interp_type=kind, antialias=False, roi_start=start, roi_end=end)


def _blur(images: Node, given: Node, _: int) -> Node:
    return fn.gaussian_blur(images, sigma=given[0])


def _jpeg(images: Node, given: Node, _: int) -> Node:
    return fn.jpeg_compression_distortion(images, quality=fn.cast(given[0], dtype=types.INT32))


_OPERATIONS: Mapping[Op, Callable[[Node, Node, int], Node]] = {
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


def _blend(other: Node, images: Node, given: Node) -> Node:
    """Return Pillow's `Image.blend`: factor 0 is the other, 1 the images."""
    return _cut(other + (images - other) * _beside(images, given[0]))


def _cut(values: Node) -> Node:
    """Return uint8, decimals cut off as Pillow does, where DALI would round."""
    return fn.cast(math.floor(math.clamp(values, 0.0, 255.0)), dtype=types.UINT8)


def _gray(images: Node) -> Node:
    """Return `[size, size, 1] float32`, as Pillow's `convert("L")` has it."""
    parts = fn.reductions.sum(images * _constant(images, _GRAY), axes=[2], keep_dims=True, dtype=types.INT32)
    return fn.cast((parts + 32768) // 65536, dtype=types.FLOAT)


def _extremes(images: Node) -> tuple[Node, Node]:
    """Return each channel's lowest and highest value, `[1, 1, 3] uint8`."""
    low, high = (reduce(images, axes=[0, 1], keep_dims=True) for reduce in (fn.reductions.min, fn.reductions.max))
    return low, high


def _beside(images: Node, given: Node) -> Node:
    """Return the argument where the images are: GPU and CPU do not mix in arithmetic."""
    return given.gpu() if images.device == "gpu" else given


def _constant(images: Node, value: npt.NDArray[Any]) -> Node:
    return types.Constant(value, device=images.device)


def _uint8(value: int) -> Node:
    return types.Constant(value, dtype=types.UINT8)
