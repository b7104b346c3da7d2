"""The catalog: several finished sets as one table whose rows are what the shards hold."""

import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.catalog import ORIGIN, Catalog, open_catalog
from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.errors import DataError, UsageError
from shardgen.inputs.folders import open_folder
from shardgen.manifest import FileInfo, Manifest, ShardInfo, hash_file, read_manifest, write_manifest
from shardgen.procedural import draw_folder
from shardgen.shardset import ShardSet
from shardgen.tag_tables import join_table, read_table
from shardgen.tags import UNKNOWN, Records, no_tags
from shardgen.writer import table_bytes, table_schema
from tests.support import extend, make_set


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


def table_of(num_samples: int, first: int = 0, **columns: Any) -> dict[str, Any]:
    """Return columns of a shard's table: those given, and plain ones for the rest."""
    rows = range(first, first + num_samples)
    return {
        "key": [f"{row:08x}" for row in rows],
        "offset": [512 + 10240 * row for row in range(num_samples)],
        "size": [1000 + row for row in rows],
        "identity": [row % 3 for row in rows],
        "width": [112] * num_samples,
        "height": [112] * num_samples,
        **columns,
    }


def write_set(folder: Path, shards: Sequence[Mapping[str, Any]], **axes: Any) -> Path:
    """Write a set of shards with these tables, tars of holes and three identities; axes have values 0, 1, ... too."""
    folder.mkdir()
    known = {axis for table in shards for axis in table} - set(table_of(0)) - {"score", "note"}
    total, nothing = sum(len(table["key"]) for table in shards), FileInfo(bytes=0, sha256="")
    manifest = Manifest(
        **{"name": folder.name, "origin": "authentic", "num_read": total, "num_samples": total, "num_rejected": 0},
        **{"rejected_reasons": {}, "rejected_file": nothing, "counts": {}, "job": {}},
        axes={axis: [UNKNOWN, *map(str, range(9))] for axis in sorted(known)} | axes,
        identities=["a", "b", "c"],
        num_identities=len({number for table in shards for number in table["identity"]}),
        shards=[write_shard(folder, f"{number:06d}", table) for number, table in enumerate(shards)],
    )
    write_manifest(folder, manifest)
    return folder


def write_shard(folder: Path, name: str, table: Mapping[str, Any]) -> ShardInfo:
    types = {one.name: one.type for one in table_schema([])} | {"score": pa.float32(), "note": pa.string()}
    columns = {name: pa.array(column, types.get(name, pa.int16())) for name, column in table.items()}
    (folder / f"{name}.parquet").write_bytes(table_bytes(pa.table(columns)))
    with (folder / f"{name}.tar").open("wb") as tar:
        tar.truncate(1 << 20)
    files = {suffix: hash_file(folder / f"{name}{suffix}") for suffix in (".tar", ".parquet")}
    return ShardInfo(name=name, num_samples=len(table["key"]), files=files)


def members(catalog: Catalog) -> Iterator[tuple[int, dict[str, Any], bytes]]:
    """Yield each row's json and image as the tar holds them at the row's offset."""
    shards, offsets, _ = catalog.places(np.arange(len(catalog)))
    for number, shard in enumerate(catalog.shards):
        with tarfile.open(shard.path) as tar:
            files = tar.getmembers()
            where = {file.offset_data: position for position, file in enumerate(files)}
            for row in np.flatnonzero(shards == number):
                position = where[int(offsets[row])]
                image, described = (tar.extractfile(files[position + step]) for step in (0, 1))
                assert image is not None
                assert described is not None
                yield int(row), json.load(described), image.read()


def test_every_row_is_what_its_shard_says(catalog: Catalog) -> None:
    rows = 0
    for row, described, image in members(catalog):
        rows += 1
        assert len(image) == catalog.places(np.array([row]))[2][0]
        assert catalog.identities[catalog.label[row]] == (described["dataset"], described["identity"])
        tags = {axis: values[catalog.codes(axis, np.array([row]))[0]] for axis, values in catalog.axes.items()}
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
    found = {name: set(values[catalog.codes(ORIGIN, catalog.ids_of(name))]) for name in catalog.set_starts}
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


def test_a_sample_costs_12_bytes_and_1_for_each_axis_2_with_many_values(tmp_path: Path) -> None:
    values = [UNKNOWN, *map(str, range(300))]
    catalog = open_catalog(
        {"set": write_set(tmp_path / "set", [table_of(300, age=range(1, 301), group=[0] * 300)], age=values)}
    )
    assert catalog.label.nbytes + catalog.block.nbytes + catalog.size.nbytes == 12 * 300
    assert {axis: codes.nbytes for axis, codes in catalog.tags.items()} == {"age": 600, "group": 300}
    assert catalog.codes("age", range(300)).tolist() == list(range(1, 301))


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
    found = {
        catalog.identities[label][1]: catalog.axes[axis][code]
        for label, code in zip(catalog.label, catalog.codes(axis, range(len(catalog))), strict=True)
    }
    assert found == {"00000": "a", "00001": "b", "00002": "c", "00003": "unknown"}


@st.composite
def sets_of_tables(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """Draw some sets of some shards, with axes of their own; a shard may be empty, an identity without a sample."""

    def tables() -> list[dict[str, Any]]:
        sides = {side: st.sampled_from([112, 96]) for side in ("width", "height")}
        axes = {axis: st.integers(0, 9) for axis in sorted(draw(st.sets(st.sampled_from(["group", "age"]))))}
        columns = {"identity": st.sampled_from(draw(st.sampled_from([[0], [0, 2], [0, 1, 2]]))), **axes, **sides}
        sizes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
        return [
            {
                **table_of(size),
                **{name: draw(st.lists(one, min_size=size, max_size=size)) for name, one in columns.items()},
            }
            for size in sizes
        ]

    return [tables() for _ in range(draw(st.integers(1, 3)))]


@settings(deadline=None, max_examples=50)
@given(sets=sets_of_tables())
def test_a_catalog_is_the_tables_of_its_sets_one_after_another(sets: list[list[dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        folders = {f"{number}": write_set(Path(root) / f"{number}", one) for number, one in enumerate(sets)}
        catalog = open_catalog(folders)
        assert catalog.image_sizes == {
            size for tables in sets for one in tables for size in zip(one["width"], one["height"], strict=True)
        }
        for name, folder in folders.items():
            data, ids = ShardSet(folder), np.array(catalog.ids_of(name), np.int64)
            table = data.table().to_pydict()
            shards, offsets, sizes = catalog.places(ids)
            tars = [f"{shard.name}.tar" for shard in data.manifest.shards for _ in range(shard.num_samples)]
            assert [catalog.shards[shard].path for shard in shards] == [folder / tar for tar in tars]
            assert (offsets.tolist(), sizes.tolist()) == (table["offset"], table["size"])
            named = [(name, data.manifest.identities[number]) for number in table["identity"]]
            assert [catalog.identities[label] for label in catalog.label[ids]] == named
            for axis, values in catalog.axes.items():
                codes = table.get(axis, [0] * len(ids)) if axis != ORIGIN else [1] * len(ids)
                said = data.manifest.axes.get(axis, catalog.axes[axis])
                assert [values[code] for code in catalog.codes(axis, ids)] == [said[code] for code in codes]
        assert set(catalog.label.tolist()) == set(range(len(catalog.identities)))


def test_codes_of_a_range_a_slice_and_an_array_are_the_same(catalog: Catalog) -> None:
    ids = range(5, 20)
    for axis in catalog.axes:
        codes = catalog.codes(axis, np.array(ids)).tolist()
        assert catalog.codes(axis, ids).tolist() == catalog.codes(axis, slice(5, 20)).tolist() == codes
        assert catalog.codes(axis, ids).dtype == np.int16


def test_identities_are_a_sequence(catalog: Catalog) -> None:
    pairs = list(catalog.identities)
    assert pairs == [catalog.identities[label] for label in range(11)]
    assert (catalog.identities[-1], catalog.identities[3:6]) == (pairs[-1], pairs[3:6])
    with pytest.raises(IndexError):
        catalog.identities[11]


def test_the_shards_are_what_the_manifests_vouch_for(catalog: Catalog, folders: dict[str, Path]) -> None:
    expected = [
        (folder / f"{shard.name}.tar", shard.files[".tar"].bytes, shard.files[".tar"].sha256)
        for folder in folders.values()
        for shard in read_manifest(folder).shards
    ]
    assert [(shard.path, shard.num_bytes, shard.sha256) for shard in catalog.shards] == expected
    assert catalog.shard_starts.tolist() == [0, 3, 6, 8, 11, 14, 16, 20]


@pytest.fixture
def scored(tmp_path: Path) -> Catalog:
    """Two sets; the second has a score that is not always known, a note, and ages."""
    keys = ["0", "f", "00000010", "123456789abcdef"]
    tables = [
        table_of(4, key=keys, score=[0.5, None, 3.0, 4.0], note=["x"] * 4, age=[2, 0, 1, 2]),
        table_of(2, first=4, score=[None, None], note=["y"] * 2, age=[0, 3]),
    ]
    second = write_set(tmp_path / "second", tables, age=[UNKNOWN, "9", "40", "old"])
    return open_catalog({"first": write_set(tmp_path / "first", [table_of(5)]), "second": second})


def test_further_columns_come_as_numbers(scored: Catalog) -> None:
    columns = scored.columns("second", ["key", "score", "age", "width"])
    assert columns["key"].tolist() == [0x0, 0xF, 0x10, 0x123456789ABCDEF, 4, 5]
    assert columns["key"].dtype == np.uint64
    nan = np.nan
    assert np.array_equal(columns["score"], [0.5, nan, 3.0, 4.0, nan, nan], equal_nan=True)
    assert np.array_equal(columns["age"], [40, nan, 9, 40, nan, nan], equal_nan=True)
    assert columns["width"].tolist() == [112.0] * 6
    assert scored.columns("first", ["size"])["size"].tolist() == [1000, 1001, 1002, 1003, 1004]


@pytest.mark.parametrize("name", ["scores", "note", "origin"])
def test_a_column_without_numbers_is_refused_with_those_that_have_some(scored: Catalog, name: str) -> None:
    there = "age, height, identity, key, offset, score, size, width"
    with pytest.raises(UsageError, match=f"set second has no column '{name}' of numbers; there are: {there}"):
        scored.columns("second", [name])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace("synthetic", "authentic"))


@pytest.mark.parametrize(
    ("file", "harm", "message"),
    [
        ("manifest.json", Path.unlink, "did not finish"),
        ("manifest.json", cut, "not as it was written"),
        ("manifest.json", edit, "not as it was written"),
        ("000001.tar", Path.unlink, "000001.tar is missing"),
        ("000001.tar", cut, "000001.tar is missing or not [0-9]+ bytes.*facemix verify"),
        ("000001.tar", extend, "000001.tar is missing or not"),
        ("000002.parquet", Path.unlink, "000002.parquet is missing"),
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


@settings(deadline=None)
@given(data=st.data())
def test_any_changed_byte_of_a_table_is_refused(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = write_set(Path(root) / "set", [table_of(6, group=[1, 2, 3, 0, 1, 2])])
        table = folder / "000000.parquet"
        content = bytearray(table.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        table.write_bytes(content)
        with pytest.raises(
            DataError, match=f"{table} is missing or not as it was written; see `facemix verify {folder}`"
        ):
            open_catalog({"set": folder})


def test_a_folder_that_is_not_there_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere is not a folder"):
        open_catalog({"one": folders["one"], "two": tmp_path / "nowhere"})


def test_the_digest_follows_the_sets_and_not_their_place(folders: dict[str, Path], tmp_path: Path) -> None:
    moved = shutil.copytree(folders["one"], tmp_path / "moved")
    digest = open_catalog({"one": folders["one"]}).digest
    assert open_catalog({"one": moved}).digest == digest
    others = [{"one": folders["two"]}, {"one": folders["one"], "two": folders["two"]}]
    assert digest not in {open_catalog(other).digest for other in others}
