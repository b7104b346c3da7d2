"""The contact sheet: who is in it, and that every name can be read."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.images import Rgb, decode
from shardgen.inputs.folders import open_folder
from shardgen.sheet import CELL, COLUMNS, contact_sheet, rows, write_png
from shardgen.tags import Tags, join_pattern, no_tags
from tests.support import make_set


def coloured_set(out: Path, images_of: list[int], pattern: str | None = None, **config: Any) -> Path:
    """Convert one-coloured images: the red of identity `i` is `20 * i`, so that a picture shows who is in it."""
    raw = out.with_name("raw")
    for identity, num_images in enumerate(images_of):
        (raw / f"p{identity}").mkdir(parents=True)
        for image in range(num_images):
            picture = np.full((8 + identity, 8, 3), (0, 0, 20 * identity), np.uint8)
            cv2.imwrite(str(raw / f"p{identity}" / f"{image}.png"), picture)
    source = open_folder(raw)
    tags: Tags = no_tags(len(source)) if pattern is None else join_pattern(pattern, source.names())
    options: dict[str, Any] = {"name": "coloured", "origin": "synthetic"}
    convert(source, tags, out, ShardConfig(**options | config))
    return out


def people_in(sheet: Rgb) -> list[list[int | None]]:
    """Return the identities that a coloured set's sheet shows, row by row."""
    centres = sheet[CELL // 2 :: CELL, sheet.shape[1] - COLUMNS * CELL + CELL // 2 :: CELL]
    return [[None if red == 255 else red // 20 for red, _, _ in row] for row in centres.tolist()]


def labels_in(sheet: Rgb) -> Rgb:
    return sheet[:, : -COLUMNS * CELL]


def test_a_sheet_shows_different_people_where_there_are_enough(tmp_path: Path) -> None:
    sheet = contact_sheet([coloured_set(tmp_path / "set", [4] * 10, shard_samples=5)])
    assert sheet.shape[0] == CELL
    assert len(set(people_in(sheet)[0])) == COLUMNS


def test_a_row_with_few_people_is_filled_up_with_white(tmp_path: Path) -> None:
    sheet = contact_sheet([coloured_set(tmp_path / "set", [3, 1])])
    assert sorted(people_in(sheet)[0][:2], key=str) == [0, 1]
    assert people_in(sheet)[0][2:] == [None] * 6


def test_a_sheet_has_a_row_for_each_group_that_has_a_sample(tmp_path: Path) -> None:
    out = coloured_set(tmp_path / "set", [1, 1, 1, 1], r"p(?P<half>[01])")  # people 2 and 3: unknown
    shown = [{person for person in row if person is not None} for row in people_in(contact_sheet([out]))]
    assert shown == [{0, 1, 2, 3}, {2, 3}, {0}, {1}]
    assert [row.label for row in rows(out)] == [
        "coloured (synthetic)",
        "coloured half: unknown",
        "coloured half: 0",
        "coloured half: 1",
    ]


def test_an_axis_with_many_values_gets_no_rows(tmp_path: Path) -> None:
    out = coloured_set(tmp_path / "set", [13], r"/(?P<image>[0-9]+)")
    assert contact_sheet([out]).shape[0] == CELL


def test_several_sets_stand_below_each_other_and_in_a_png(tmp_path: Path, small_set: Path) -> None:
    other = make_set(tmp_path / "other", range(4), 1, tagged=False)
    sheet = contact_sheet([small_set, other])
    assert sheet.shape[0] == (1 + 4 + 1) * CELL
    write_png(tmp_path / "new" / "sheet.picture", sheet)
    assert (decode((tmp_path / "new" / "sheet.picture").read_bytes()) == sheet).all()


def test_an_image_that_does_not_decode_leaves_its_place_to_another(tmp_path: Path) -> None:
    out = coloured_set(tmp_path / "set", [2, 1], order="source")
    with (out / "000000.tar").open("r+b") as tar:
        tar.seek(512)
        tar.write(bytes(16))
    assert people_in(contact_sheet([out]))[0][:3] == [0, 1, None]


def test_names_in_other_alphabets_can_be_told_apart(tmp_path: Path) -> None:
    """OpenCV's fonts draw a question mark for each of these letters."""
    seen = set()
    for name in ("Москва", "Самара", "Μυκήνη", "éüèàöç", "??????"):
        sheet = contact_sheet([coloured_set(tmp_path / name / "set", [1], name=name)])
        seen.add(labels_in(sheet).tobytes())
    assert len(seen) == 5


def test_a_long_name_stays_out_of_the_faces(tmp_path: Path) -> None:
    sheet = contact_sheet([coloured_set(tmp_path / "set", [1], name="W" * 500)])
    assert people_in(sheet)[0] == [0] + [None] * 7
    assert (sheet[:, -7 * CELL :] == 255).all()
    assert (labels_in(sheet) == 0).any()
