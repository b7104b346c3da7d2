"""What happens to each image of a batch, as numbers: the one language of drawing and of everything that executes it.

Every image has a row of steps, each an operation and its parameters, to be applied from left to right.
Rows are drawn by `pipeline.augment`, and executed by `pipeline.reference` (plain and slow, the oracle),
`pipeline.fused` (OpenCV, on CPUs) and `pipeline.graph_steps` (DALI, on GPUs). Images are RGB.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

MAX_PARAMETERS = 6


class Op(IntEnum):
    """What a step does; behind it, its parameters."""

    NOTHING = 0
    WARP = 1
    """a b c d e f: output pixel (x, y) takes input pixel (a x + b y + c, d x + e y + f), the nearest; black outside.
    Pixel centres are whole numbers."""
    BRIGHTNESS = 2
    """factor: blend with black, as `PIL.ImageEnhance.Brightness`."""
    CONTRAST = 3
    """factor: blend with the image's mean grey, as `PIL.ImageEnhance.Contrast`."""
    COLOR = 4
    """factor: blend with the image in grey, as `PIL.ImageEnhance.Color`; 0 is grayscale."""
    SHARPNESS = 5
    """factor: blend with the smoothed image, as `PIL.ImageEnhance.Sharpness`."""
    POSTERIZE = 6
    """bits, 0 to 8: keep the upper ones, as `PIL.ImageOps.posterize`."""
    SOLARIZE = 7
    """threshold, 0 to 256: invert values from it on, as `PIL.ImageOps.solarize`."""
    AUTOCONTRAST = 8
    """Stretch each channel to 0 to 255, as `PIL.ImageOps.autocontrast`."""
    EQUALIZE = 9
    """Equalise each channel's histogram, as `PIL.ImageOps.equalize`."""
    KEEP = 10
    """left top right bottom (exclusive), in pixels: black outside the box."""
    ERASE = 11
    """left top right bottom value: the box takes that value."""
    LOW_RESOLUTION = 12
    """width height down up: resize to that size and back; the last two are OpenCV's codes of interpolations."""
    BLUR = 13
    """sigma, in pixels."""
    JPEG = 14
    """quality, 1 to 100."""


@dataclass(frozen=True)
class Steps:
    """The steps of a batch; a row per image."""

    ops: npt.NDArray[np.uint8]
    """`[batch, steps]`: `Op` codes."""
    parameters: npt.NDArray[np.float32]
    """`[batch, steps, MAX_PARAMETERS]`: 0 where an operation has fewer."""
