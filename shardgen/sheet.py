"""A contact sheet: a labelled row of faces for each set and each group in it."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from shardgen.images import Rgb, Unreadable, decode
from shardgen.labels import side_label
from shardgen.shardset import ShardSet
from shardgen.summary import MAX_VALUES

CELL = 112
COLUMNS = 8


class Row(NamedTuple):
    """Faces of one set or group."""

    label: str
    faces: Rgb
    """`[CELL, COLUMNS * CELL, 3]`: one of each identity, white where there are no more."""


def rows(path: Path) -> Iterator[Row]:
    """Yield a row for a set and one for each group in it.

    Axes with more than `MAX_VALUES` values (ages) are left out: their rows would be no overview.
    """
    shards = ShardSet(path)
    manifest = shards.manifest
    yield Row(f"{manifest.name} ({manifest.origin})", _faces(shards, None, 0))
    for axis, values in manifest.axes.items():
        shown = [code for code, value in enumerate(values) if manifest.counts[axis][value]]
        if len(shown) <= MAX_VALUES:
            for code in shown:
                yield Row(f"{manifest.name} {axis}: {values[code]}", _faces(shards, axis, code))


def contact_sheet(paths: Sequence[Path]) -> Rgb:
    """Return the rows of all sets below each other, with their labels to the left."""
    return np.concatenate(
        [np.concatenate([side_label(row.label, CELL), row.faces], axis=1) for path in paths for row in rows(path)]
    )


def write_png(path: Path, picture: Rgb) -> None:
    """Write a picture as PNG, whatever the file is called."""
    done, data = cv2.imencode(".png", picture[..., ::-1])
    assert done
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(data))


def _faces(shards: ShardSet, axis: str | None, code: int) -> Rgb:
    """Return the first faces, each of another identity, that have a tag."""
    strip = np.full((CELL, COLUMNS * CELL, 3), 255, np.uint8)
    for cell, face in zip(range(COLUMNS), _decoded(shards, axis, code), strict=False):
        strip[:, cell * CELL : (cell + 1) * CELL] = cv2.resize(face, (CELL, CELL), interpolation=cv2.INTER_AREA)
    return strip


def _decoded(shards: ShardSet, axis: str | None, code: int) -> Iterator[Rgb]:
    """Yield an image of each identity that has the tag, of a set converted without a check what decodes."""
    shown: set[int] = set()
    columns = ["offset", "size", "identity", *([axis] if axis else [])]
    for shard, table in zip(shards.manifest.shards, shards.tables(columns), strict=True):
        wanted = np.flatnonzero(table[axis].to_numpy() == code) if axis else np.arange(len(table))
        with (shards.folder / f"{shard.name}.tar").open("rb") as tar:
            for row in table.take(wanted).to_pylist():
                if row["identity"] in shown:
                    continue
                tar.seek(row["offset"])
                with suppress(Unreadable):
                    yield decode(tar.read(row["size"]))
                    shown.add(row["identity"])
