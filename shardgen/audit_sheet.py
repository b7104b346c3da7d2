"""The pairs that an audit found, side by side, for a person to judge."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from shardgen.audit_samples import Pair, Place
from shardgen.images import Rgb, decode
from shardgen.labels import label
from shardgen.shardset import ShardSet
from shardgen.sheet import CELL

_LABEL_WIDTH = 448


def pair_sheet(paths: Sequence[Path], pairs: Sequence[Pair]) -> Rgb:
    """Return a picture with a row for each pair: both images, and what is said of them; `paths` are those audited."""
    sets = [ShardSet(path) for path in paths]
    if not pairs:
        return label(["no pairs were found"], _LABEL_WIDTH, CELL)
    return np.concatenate([np.concatenate(_row(sets, pair), axis=1) for pair in pairs])


def _row(sets: Sequence[ShardSet], pair: Pair) -> list[Rgb]:
    said = [f"{pair.relation}, {pair.degree}"]
    for place in (pair.first, pair.second):
        said += [f"{place.set_name} {place.key}", f"  {place.identity}: {place.source}"]
    return [_face(sets, pair.first), _face(sets, pair.second), label(said, _LABEL_WIDTH, CELL, font_pixels=12)]


def _face(sets: Sequence[ShardSet], place: Place) -> Rgb:
    face = decode(sets[place.set_number].image(place.row))
    cell: Rgb = cv2.resize(face, (CELL, CELL), interpolation=cv2.INTER_AREA)
    return cell
