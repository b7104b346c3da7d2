"""The catalog: several finished sets as one table whose rows are what the shards hold."""

import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.catalog import ORIGIN, Catalog, open_catalog
from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.errors import DataError, UsageError
from shardgen.inputs.folders import open_folder
from shardgen.procedural import draw_folder
from shardgen.tag_tables import join_table, read_table
from shardgen.tags import Records, no_tags
from tests.support import make_set


def tagged_set(out: Path, table: str, **config: Any) -> Path:
    """Draw 2 images each of identities 0..3 and tag them by a table."""
    raw = out.with_name(f"{out.name}.raw")
    draw_folder(raw, 0, range(4), range(2))
    (raw / "tags.csv").write_text(table)
    source = open_folder(raw / "images")
    tags = join_table(read_table(raw / "tags.csv"), Records(source.names, source.identities, source.labels))
    options: dict[str, Any] = {"name": out.name, "origin": "authentic", "shard_samples": 3}
    convert(source, tags, out, ShardConfig(**options | config))
    return out


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three sets whose axes and values differ."""
    root = tmp_path_factory.mktemp("sets")
    one = "identity,group,gender\n00000,south,f\n00001,north,m\n00002,south,f\n"
    two = "identity,age,group\n00000,40,east\n00001,9,south\n00002,40,\n00003,101,west\n"
    return {
        "one": tagged_set(root / "one", one),
        "two": tagged_set(root / "two", two, origin="synthetic"),
        "plain": make_set(root / "plain", range(10, 13), 2, tagged=False, shard_samples=4),
    }


@pytest.fixture(scope="module")
def catalog(folders: dict[str, Path]) -> Catalog:
    return open_catalog(folders)


def members(catalog: Catalog) -> Iterator[tuple[int, dict[str, Any], bytes]]:
    """Yield each row's json and image as the tar holds them at the row's offset."""
    for number, path in enumerate(catalog.shard_paths):
        with tarfile.open(path) as tar:
            files = tar.getmembers()
            where = {file.offset_data: position for position, file in enumerate(files)}
            for row in np.flatnonzero(catalog.shard == number):
                position = where[int(catalog.offset[row])]
                image, described = (tar.extractfile(files[position + step]) for step in (0, 1))
                assert image is not None
                assert described is not None
                yield int(row), json.load(described), image.read()


def test_every_row_is_what_its_shard_says(catalog: Catalog) -> None:
    rows = 0
    for row, described, image in members(catalog):
        rows += 1
        assert len(image) == catalog.size[row]
        assert catalog.identities[catalog.label[row]] == (described["dataset"], described["identity"])
        tags = {axis: values[catalog.tags[axis][row]] for axis, values in catalog.axes.items()}
        unknown = dict.fromkeys(catalog.axes, "unknown")
        assert tags == {**unknown, **described["tags"], ORIGIN: described["origin"]}
    assert rows == len(catalog) == 8 + 8 + 6


def test_axes_are_united_and_start_with_unknown(catalog: Catalog) -> None:
    assert {axis: set(values) for axis, values in catalog.axes.items()} == {
        "origin": {"unknown", "authentic", "synthetic"},
        "group": {"unknown", "north", "south", "east", "west"},
        "gender": {"unknown", "f", "m"},
        "age": {"unknown", "9", "40", "101"},
    }
    assert all(values[0] == "unknown" for values in catalog.axes.values())
    assert all(len(set(values)) == len(values) for values in catalog.axes.values())


def test_the_origin_is_an_axis(catalog: Catalog) -> None:
    values = np.array(catalog.axes[ORIGIN])
    found = {name: set(values[catalog.tags[ORIGIN][list(catalog.ids_of(name))]]) for name in catalog.set_starts}
    assert found == {"one": {"authentic"}, "two": {"synthetic"}, "plain": {"authentic"}}


def test_labels_are_disjoint_between_sets_and_contiguous(catalog: Catalog) -> None:
    labels = {name: set(catalog.label[list(catalog.ids_of(name))].tolist()) for name in catalog.set_starts}
    assert labels == {"one": set(range(4)), "two": set(range(4, 8)), "plain": set(range(8, 11))}
    assert [name for name, _ in catalog.identities] == ["one"] * 4 + ["two"] * 4 + ["plain"] * 3


def test_an_identity_without_a_sample_has_no_label(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    draw_folder(raw, 0, range(3), range(2))
    for image in (raw / "images" / "00001").iterdir():
        image.write_bytes(b"\xff\xd8\xff")
    source = open_folder(raw / "images")
    tags = join_table(read_table(raw / "identities.csv"), Records(source.names, source.identities, source.labels))
    convert(source, tags, tmp_path / "set", ShardConfig(name="set", origin="authentic", max_rejected=0.5))
    catalog = open_catalog({"a": tmp_path / "set"})
    assert list(catalog.identities) == [("a", "00000"), ("a", "00002")]
    assert set(catalog.label.tolist()) == {0, 1}


def test_sets_lie_one_after_another(catalog: Catalog) -> None:
    assert [catalog.ids_of(name) for name in ("one", "two", "plain")] == [range(8), range(8, 16), range(16, 22)]


def test_one_folder_under_two_names_is_two_sets(folders: dict[str, Path]) -> None:
    catalog = open_catalog({"a": folders["one"], "b": folders["one"]})
    assert len(catalog.identities) == 8
    assert np.array_equal(catalog.label[:8] + 4, catalog.label[8:])


def test_a_sample_costs_20_bytes_and_2_for_each_axis(catalog: Catalog) -> None:
    columns = catalog.shard.nbytes + catalog.offset.nbytes + catalog.size.nbytes + catalog.label.nbytes
    assert columns == 20 * len(catalog)
    assert [column.nbytes for column in catalog.tags.values()] == [2 * len(catalog)] * 4


def test_image_sizes_are_known_without_an_image(small_set: Path, tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    for number, (width, height) in enumerate([(112, 112), (90, 60), (60, 90), (60, 90)]):
        cv2.imwrite(str(tmp_path / "faces" / f"{number}.png"), np.full((height, width, 3), number, np.uint8))
    source = open_folder(tmp_path / "faces")
    convert(source, no_tags(len(source)), tmp_path / "set", ShardConfig(name="mixed", origin="authentic"))
    assert open_catalog({"mixed": tmp_path / "set"}).image_sizes == {(112, 112), (90, 60), (60, 90)}
    assert open_catalog({"small": small_set}).image_sizes == {(112, 112)}
    both = open_catalog({"small": small_set, "mixed": tmp_path / "set"})
    assert both.image_sizes == {(112, 112), (90, 60), (60, 90)}


@pytest.mark.parametrize("axis", ["shard", "label", "tags", "set"])
def test_an_axis_may_have_any_name_that_conversion_takes(axis: str, tmp_path: Path) -> None:
    folder = tagged_set(tmp_path / "set", f"identity,{axis}\n00000,a\n00001,b\n00002,c\n")
    catalog = open_catalog({"set": folder})
    assert set(catalog.shard.tolist()) == {0, 1, 2}
    found = {
        catalog.identities[label][1]: catalog.axes[axis][code]
        for label, code in zip(catalog.label, catalog.tags[axis], strict=True)
    }
    assert found == {"00000": "a", "00001": "b", "00002": "c", "00003": "unknown"}


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace("synthetic", "authentic"))


@pytest.mark.parametrize(
    ("file", "harm", "message"),
    [
        ("manifest.json", remove, "did not finish"),
        ("manifest.json", cut, "not as it was written"),
        ("manifest.json", edit, "not as it was written"),
        ("000001.tar", remove, "000001.tar is missing"),
        ("000001.tar", cut, "000001.tar is missing or not [0-9]+ bytes.*facemix verify"),
        ("000001.tar", extend, "000001.tar is missing or not"),
        ("000002.parquet", remove, "000002.parquet is missing"),
        ("000000.parquet", cut, "000000.parquet is missing or not"),
    ],
)
def test_an_unfinished_or_damaged_set_is_refused(
    folders: dict[str, Path], tmp_path: Path, file: str, harm: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(folders["two"], tmp_path / "set")
    harm(tmp_path / "set" / file)
    with pytest.raises(DataError, match=message):
        open_catalog({"one": folders["one"], "two": tmp_path / "set"})


def test_a_folder_that_is_not_there_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere is not a folder"):
        open_catalog({"one": folders["one"], "two": tmp_path / "nowhere"})


def test_the_digest_follows_the_sets_and_not_their_place(folders: dict[str, Path], tmp_path: Path) -> None:
    moved = shutil.copytree(folders["one"], tmp_path / "moved")
    digest = open_catalog({"one": folders["one"]}).digest
    assert open_catalog({"one": moved}).digest == digest
    others = [{"one": folders["two"]}, {"one": folders["one"], "two": folders["two"]}]
    assert digest not in {open_catalog(other).digest for other in others}
