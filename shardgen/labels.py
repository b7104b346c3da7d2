"""Text on pictures, in a font that every installation has and that knows more than English."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shardgen.images import Rgb

_SIDE_WIDTH = 220
_SIDE_LETTERS = 24  # that fit in a line
_LINE_HEIGHT = 18
_FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def label(lines: Sequence[str], width: int, height: int, font_pixels: int = 15) -> Rgb:
    """Return black lines on white; what is too much for the picture is cut off."""
    picture = Image.new("RGB", (width, height), "white")
    font = ImageFont.truetype(str(_FONT), font_pixels)
    ImageDraw.Draw(picture).multiline_text((6, 6), "\n".join(lines[: height // _LINE_HEIGHT]), "black", font)
    return np.asarray(picture)


def side_label(text: str, height: int) -> Rgb:
    """Return the label to the left of a row of faces, broken into lines."""
    return label(textwrap.wrap(text, _SIDE_LETTERS), _SIDE_WIDTH, height)
