"""A sheet of what augmentation does to faces: each face, and beside it its looks in the first passes."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pipeline.augment import draw_steps
from pipeline.augment_config import AugmentConfig
from pipeline.fused import apply_steps
from pipeline.order import Ids

Pictures = npt.NDArray[np.uint8]
"""`[faces, 1 + passes, height, width, 3]`, RGB: the face itself comes first."""

_LABEL_WIDTH = 220
_LABEL_LETTERS = 24  # that fit in a line


def augmented_rows(
    images: npt.NDArray[np.uint8], sample_ids: Ids, config: AugmentConfig, seed: int, num_passes: int
) -> Pictures:
    """Return square images `[faces, size, size, 3]` and their looks in passes 0, 1, ... of a run with this seed."""
    looks = [images]
    for number in range(num_passes):
        steps = draw_steps(config, seed, images.shape[1], sample_ids, np.full_like(sample_ids, number))
        looks.append(apply_steps(images, steps, np.empty_like(images)))
    return np.stack(looks, 1)


def compose(rows_by_label: Mapping[str, Pictures]) -> npt.NDArray[np.uint8]:
    """Return all rows below each other, with their labels to the left: `[height, width, 3]`."""
    return np.concatenate([_labelled(label, pictures) for label, pictures in rows_by_label.items()])


def _labelled(label: str, pictures: Pictures) -> npt.NDArray[np.uint8]:
    faces, looks, height, width, _ = pictures.shape
    grid = pictures.swapaxes(1, 2).reshape(faces * height, looks * width, 3)
    return np.concatenate([_text(label, len(grid)), grid], 1)


def _text(label: str, height: int) -> npt.NDArray[np.uint8]:
    """Draw a label in a font that every installation has and that knows more than English."""
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 15)
    picture = Image.new("RGB", (_LABEL_WIDTH, height), "white")
    ImageDraw.Draw(picture).multiline_text((6, 6), textwrap.fill(label, _LABEL_LETTERS), "black", font)
    return np.asarray(picture)
