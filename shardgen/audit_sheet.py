"""The pairs that an audit found, side by side, for a person to judge."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from shardgen.audit_samples import Pair, Place
from shardgen.images import Rgb, decode
from shardgen.shardset import ShardSet
from shardgen.sheet import CELL

_LABEL_WIDTH = 448
_MAX_CHARACTERS = 60


def pair_sheet(paths: Sequence[Path], pairs: Sequence[Pair]) -> Rgb:
    """Return a picture with a row for each pair: both images, and what is said of them; `paths` are those audited."""
    sets = [ShardSet(path) for path in paths]
    if not pairs:
        return _label(["no pairs were found"])
    return np.concatenate([np.concatenate(_row(sets, pair), axis=1) for pair in pairs])


def _row(sets: Sequence[ShardSet], pair: Pair) -> list[Rgb]:
    said = [f"{pair.relation}, {pair.degree}"]
    for place in (pair.first, pair.second):
        said += [f"{place.set_name} {place.key}", f"  {place.identity}: {place.source}"]
    return [_face(sets, pair.first), _face(sets, pair.second), _label(said)]


def _face(sets: Sequence[ShardSet], place: Place) -> Rgb:
    face = decode(sets[place.set_number].image(place.row))
    cell: Rgb = cv2.resize(face, (CELL, CELL), interpolation=cv2.INTER_AREA)
    return cell


def _label(lines: Sequence[str]) -> Rgb:
    """Draw lines of text; OpenCV's fonts have ASCII only."""
    label = np.full((CELL, _LABEL_WIDTH, 3), 255, np.uint8)
    for number, line in enumerate(lines):
        text = line.encode("ascii", "replace").decode()[:_MAX_CHARACTERS]
        cv2.putText(label, text, (8, 20 + 20 * number), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return label
