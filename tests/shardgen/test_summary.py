"""The figures of a set, and its contact sheet."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.errors import DataError
from shardgen.images import Rgb, decode
from shardgen.manifest import read_manifest
from shardgen.sources import open_folder
from shardgen.summary import CELL, contact_sheet, lines_of_conversion, summarise, write_png
from shardgen.tags import Tags, join_pattern, no_tags
from tests.support import make_set

COLUMNS = 8


def coloured_set(out: Path, images_of: list[int], pattern: str | None = None, **config: Any) -> Path:
    """Convert one-coloured images: the red of identity `i` is `20 * i`, so that a picture shows who is in it."""
    raw = out.with_name("raw")
    for identity, num_images in enumerate(images_of):
        (raw / f"p{identity}").mkdir(parents=True)
        for image in range(num_images):
            picture = np.full((8 + identity, 8, 3), (0, 0, 20 * identity), np.uint8)
            cv2.imwrite(str(raw / f"p{identity}" / f"{image}.png"), picture)
    source, _ = open_folder(raw)
    tags: Tags = no_tags(len(source)) if pattern is None else join_pattern(pattern, source.names())
    convert(source, tags, out, ShardConfig(name="coloured", origin="synthetic", **config))
    return out


def people_in(sheet: Rgb) -> list[list[int | None]]:
    """Return the identities that a coloured set's sheet shows, row by row."""
    centres = sheet[CELL // 2 :: CELL, sheet.shape[1] - COLUMNS * CELL + CELL // 2 :: CELL]
    return [[None if red == 255 else red // 20 for red, _, _ in row] for row in centres.tolist()]


def test_figures_of_a_drawn_set(small_set: Path) -> None:
    summary = summarise(small_set)
    assert (summary.name, summary.origin, summary.folder) == ("small", "authentic", str(small_set))
    assert (summary.num_samples, summary.num_identities, summary.num_rejected) == (32, 8, 0)
    assert summary.images_per_identity == (4, 4.0, 4)
    assert summary.image_sizes == {"112x112": 32}
    assert summary.counts == {"group": {"east": 8, "north": 8, "south": 8, "west": 8}}


def test_what_a_person_reads_of_a_set(small_set: Path) -> None:
    assert summarise(small_set).lines() == [
        f"{small_set} (authentic): 32 samples, 8 identities",
        "  images per identity: 4 to 4, 4.0 on average; 0 rejected",
        "  size: 112x112 32",
        "  group: east 8, north 8, south 8, west 8",
    ]


def test_what_a_person_reads_when_a_conversion_is_done(tmp_path: Path) -> None:
    out = coloured_set(tmp_path / "set", [1, 1, 1], r"p(?P<half>[01])")
    assert lines_of_conversion(read_manifest(out), out) == [
        f"{out} (synthetic): read 3 = written 3 + rejected 0; 3 identities, 1 shards",
        "  half: 2 values, 1 samples unknown",
    ]


def test_sizes_and_images_per_identity_are_counted_over_all_shards(tmp_path: Path) -> None:
    summary = summarise(coloured_set(tmp_path / "set", [1, 5, 3], shard_samples=2))
    assert summary.images_per_identity == (1, 3.0, 5)
    assert list(summary.image_sizes.items()) == [("8x9", 5), ("8x10", 3), ("8x8", 1)]


def test_an_identity_without_a_sample_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "raw" / "q").mkdir(parents=True)
    (tmp_path / "raw" / "q" / "0.png").touch()
    summary = summarise(coloured_set(tmp_path / "set", [2, 4], max_rejected=0.5))
    assert (summary.num_identities, summary.num_rejected, summary.images_per_identity) == (2, 1, (2, 3.0, 4))


def test_values_without_a_sample_are_left_out(tmp_path: Path) -> None:
    summary = summarise(coloured_set(tmp_path / "set", [2, 1], r"p(?P<person>[0-9])"))
    assert summary.counts == {"person": {"0": 2, "1": 1}}


def test_an_unfinished_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did not finish"):
        summarise(tmp_path)


def test_a_sheet_shows_different_people_where_there_are_enough(tmp_path: Path) -> None:
    sheet = contact_sheet([coloured_set(tmp_path / "set", [4] * 10, shard_samples=5)])
    assert sheet.shape[0] == CELL
    assert len(set(people_in(sheet)[0])) == COLUMNS


def test_a_row_with_few_people_is_filled_up_with_white(tmp_path: Path) -> None:
    sheet = contact_sheet([coloured_set(tmp_path / "set", [1, 1])])
    assert sorted(people_in(sheet)[0][:2], key=str) == [0, 1]
    assert people_in(sheet)[0][2:] == [None] * 6


def test_a_sheet_has_a_row_for_each_group_that_has_a_sample(tmp_path: Path) -> None:
    out = coloured_set(tmp_path / "set", [1, 1, 1, 1], r"p(?P<half>[01])")  # people 2 and 3: unknown
    rows = [{person for person in row if person is not None} for row in people_in(contact_sheet([out]))]
    assert rows == [{0, 1, 2, 3}, {2, 3}, {0}, {1}]


def test_an_axis_with_many_values_gets_no_rows(tmp_path: Path) -> None:
    out = coloured_set(tmp_path / "set", [13], r"/(?P<image>[0-9]+)")
    assert contact_sheet([out]).shape[0] == CELL


def test_several_sets_stand_below_each_other_and_in_a_png(tmp_path: Path, small_set: Path) -> None:
    other = make_set(tmp_path / "other", range(4), 1, tagged=False)
    sheet = contact_sheet([small_set, other])
    assert sheet.shape[0] == (1 + 4 + 1) * CELL
    write_png(tmp_path / "new" / "sheet.picture", sheet)
    assert (decode((tmp_path / "new" / "sheet.picture").read_bytes()) == sheet).all()


def test_ages_are_listed_in_the_order_of_numbers(tmp_path: Path) -> None:
    out = coloured_set(tmp_path / "set", [1] * 12, r"p(?P<age>[0-9]+)")
    assert list(summarise(out).counts["age"]) == [str(age) for age in range(12)]
