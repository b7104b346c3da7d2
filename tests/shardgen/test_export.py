"""Exports: the set's images byte by byte, whole or not there, and nothing outside their folder."""

import csv
import fcntl
import hashlib
import json
import os
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.errors import DataError, UsageError
from shardgen.export import export_folder, export_recordio, folder_of
from shardgen.inputs.folders import open_folder
from shardgen.inputs.records import open_recordio
from shardgen.manifest import MANIFEST, read_manifest, write_manifest
from shardgen.recordio import MAGIC, write_insightface
from shardgen.shardset import ShardSet
from shardgen.sources import Source
from shardgen.tag_tables import read_table
from shardgen.tags import Tags, no_tags
from tests.support import Killed, stop_before

HOSTILE = [
    "../up",
    "/etc/passwd",
    "..",
    "",
    "x\ny",
    "n" * 300,
    "a/b",
    "a",
    "a/00000000.jpg",
    "%2E.",
    " a",
    "tags.csv",
]
Export = Callable[[Path, Path], Any]
both = pytest.mark.parametrize("export", [export_recordio, export_folder])


def tiny(number: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """Return a small image, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", pixels)[1])


def make(source: Source, out: Path, tags: Tags | None = None, **options: Any) -> Path:
    config = {"name": out.name, "origin": "authentic", "shard_samples": 7} | options
    convert(source, tags or no_tags(len(source)), out, ShardConfig(**config))
    return out


def set_of(out: Path, images_of_identity: Sequence[Sequence[bytes]], axes: Mapping[str, int] | None = None) -> Path:
    """Make a shuffled set with tag axes, each with some values beside unknown, given in turn."""
    raw = out.with_name(out.name + ".raw")
    write_insightface(raw, images_of_identity)
    source = open_recordio(raw)
    values = {axis: ["unknown", *(f"v{value}" for value in range(number))] for axis, number in (axes or {}).items()}
    codes = [[record % len(known) for known in values.values()] for record in range(len(source))]
    return make(source, out, Tags(values, np.array(codes, np.int16).reshape(len(source), -1)))


def rename(folder: Path, identities: Sequence[str]) -> None:
    manifest = read_manifest(folder)
    write_manifest(folder, manifest.model_copy(update={"identities": identities}))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve identities with one to three images, and two tag axes; never change it."""
    images = [[tiny(10 * identity + image) for image in range(1 + identity % 3)] for identity in range(12)]
    return set_of(tmp_path_factory.mktemp("small") / "small", images, {"group": 2, "age": 4})


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def content_of(folder: Path) -> list[tuple[str, bytes, tuple[str, ...]]]:
    """Return identity, image and tags of a set's samples, by identity and key."""
    shards = ShardSet(folder)
    rows = sorted(enumerate(shards.table().to_pylist()), key=lambda row: (row[1]["identity"], row[1]["key"]))
    axes = shards.manifest.axes
    return [
        (
            shards.manifest.identities[row["identity"]],
            shards.image(position),
            tuple(values[row[axis]] for axis, values in axes.items()),
        )
        for position, row in rows
    ]


def again(source: Source, exported: Path, out: Path) -> list[tuple[str, bytes, tuple[str, ...]]]:
    """Convert what was exported, with the exported tags; return the new set's content."""
    row_of = {row.pop("path"): tuple(row.values()) for row in rows_of(exported / "tags.csv")}
    assert row_of.keys() == set(source.names())
    make(source, out)
    names = source.names()
    return [(identity, image, row_of[name]) for (identity, image, _), name in zip(content_of(out), names, strict=True)]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("order", ["shuffled", "source"])
def test_a_file_of_mxnet_comes_back_byte_by_byte(real_faces: Path, tmp_path: Path, order: str) -> None:
    make(open_recordio(real_faces / "orl"), tmp_path / "set", order=order, shard_samples=100)
    exported = export_recordio(tmp_path / "set", tmp_path / "out")
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / "out" / name).read_bytes() == (real_faces / "orl" / name).read_bytes()
    assert not (tmp_path / "out" / "tags.csv").exists()
    assert exported.lines() == [
        f"{tmp_path / 'out'} (recordio): 240 images of 24 identities from set, revision 1",
    ]


def test_recordio_and_back_is_the_same_set(small: Path, tmp_path: Path) -> None:
    rename(copy := copied(small, tmp_path / "set"), [f"person {number}" for number in range(12)])
    export_recordio(copy, tmp_path / "out")
    name_of = {row["identity"]: row["name"] for row in rows_of(tmp_path / "out" / "identities.csv")}
    found = again(open_recordio(tmp_path / "out"), tmp_path / "out", tmp_path / "again")
    assert [(name_of[identity], image, tags) for identity, image, tags in found] == content_of(copy)


def test_a_folder_and_back_is_the_same_set(small: Path, tmp_path: Path) -> None:
    rename(copy := copied(small, tmp_path / "set"), [f"{number // 4}/person {number:02d}" for number in range(12)])
    export_folder(copy, tmp_path / "out")
    assert again(open_folder(tmp_path / "out"), tmp_path / "out", tmp_path / "again") == content_of(copy)
    assert not (tmp_path / "out" / "identities.csv").exists()


def test_the_exported_tags_are_a_table_of_tags(small: Path, tmp_path: Path) -> None:
    for export in (export_recordio, export_folder):
        export(small, tmp_path / export.__name__)
        table = read_table(tmp_path / export.__name__ / "tags.csv")
        assert (table.key, len(table.keys)) == ("path", len(ShardSet(small)))


@pytest.mark.parametrize("name", ["standin", "utkface"])
def test_real_faces_go_to_recordio_and_to_folders_and_come_back(real_faces: Path, tmp_path: Path, name: str) -> None:
    images = real_faces / name / "images"
    for path in sorted(images.rglob("*.jpg"))[::25]:
        (raw := tmp_path / "raw" / path.relative_to(images)).parent.mkdir(parents=True, exist_ok=True)
        raw.write_bytes(path.read_bytes())
    original = content_of(make(open_folder(tmp_path / "raw"), tmp_path / "set"))
    export_recordio(tmp_path / "set", tmp_path / "records")
    make(open_recordio(tmp_path / "records"), tmp_path / "set2")
    rename(tmp_path / "set2", [row["name"] for row in rows_of(tmp_path / "records" / "identities.csv")])
    export_folder(tmp_path / "set2", tmp_path / "folder")
    assert content_of(make(open_folder(tmp_path / "folder"), tmp_path / "set3")) == original
    assert len(original) > 50


def test_odd_images_and_the_record_magic_survive(real_faces: Path, tmp_path: Path) -> None:
    make(open_recordio(real_faces / "odd_records"), tmp_path / "set", max_rejected=0.5)
    export_recordio(tmp_path / "set", tmp_path / "out")
    source = open_recordio(tmp_path / "out")
    images = [image for _, image, _ in content_of(tmp_path / "set")]
    assert [source.read(record) for record in range(len(source))] == images
    assert any(MAGIC.to_bytes(4, "little") in image for image in images)


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize("check", ["decode", "none"])
def test_property_holds_the_most_frequent_size_height_first(tmp_path: Path, check: str) -> None:
    write_insightface(tmp_path / "raw", [[tiny(0, (16, 8)), tiny(1, (16, 8))], [tiny(2, (4, 4))]])
    make(open_recordio(tmp_path / "raw"), tmp_path / "set", check=check)
    export_recordio(tmp_path / "set", tmp_path / "out")
    assert (tmp_path / "out" / "property").read_text() == "2,16,8\n"


def test_identities_without_a_sample_leave_no_gap_in_the_numbers(tmp_path: Path) -> None:
    write_insightface(tmp_path / "raw", [[tiny(0)], [b"no image"], [tiny(2)]])
    make(open_recordio(tmp_path / "raw"), tmp_path / "set", max_rejected=0.5)
    assert export_recordio(tmp_path / "set", tmp_path / "out").num_identities == 2
    assert open_recordio(tmp_path / "out").identities == ["0", "1"]
    expected = [{"identity": "0", "name": "0"}, {"identity": "1", "name": "2"}]
    assert rows_of(tmp_path / "out" / "identities.csv") == expected


def test_more_than_float32_labels_can_tell_apart_is_refused(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_label = len(ShardSet(small)) + 12 + 1
    monkeypatch.setattr("shardgen.export.MAX_EXACT_LABEL", last_label - 1)
    with pytest.raises(UsageError, match=f"up to {last_label}, float32 labels are exact to {last_label - 1}"):
        export_recordio(small, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("shardgen.export.MAX_EXACT_LABEL", last_label)
    export_recordio(small, tmp_path / "out")


@both
def test_an_earlier_revision_is_exported_with_its_own_tags(small: Path, tmp_path: Path, export: Export) -> None:
    folder = copied(small, tmp_path / "set")
    first = read_manifest(folder)
    (folder / MANIFEST).rename(folder / "manifest.r1.json")
    newer = {"group": ["unknown", "new", "newer"], "age": first.axes["age"]}
    write_manifest(folder, first.model_copy(update={"revision": 2, "axes": newer}))
    assert export(folder, tmp_path / "new").revision == 2
    assert export(folder / "manifest.r1.json", tmp_path / "old").revision == 1
    tags = {name: {row["group"] for row in rows_of(tmp_path / name / "tags.csv")} for name in ("old", "new")}
    assert tags == {"old": {"unknown", "v0", "v1"}, "new": {"unknown", "new", "newer"}}
    made_of = json.loads((tmp_path / "old" / "export.json").read_text())
    manifest = hashlib.sha256((folder / "manifest.r1.json").read_bytes()).hexdigest()
    assert (made_of["set"], made_of["revision"], made_of["manifest"]) == ("small", 1, manifest)


names = st.lists(st.text(st.sampled_from("ab01./%~ \t\r\n\0\x85é\u2028"), max_size=12), unique=True, max_size=8)


@settings(deadline=None, max_examples=150)
@given(
    identities=st.lists(st.sampled_from(HOSTILE), min_size=1, unique=True).flatmap(
        lambda some: names.map(lambda more: some + more)
    )
)
@example(identities=HOSTILE)
@example(
    identities=["n" * 300, "n" * 301, "é" * 70, "%~" + "0" * 32 + "~" + "n" * 100, "%", "export.json/a", "tags.csv"]
)
def test_folders_of_identities_never_collide_and_never_leave_theirs(
    tmp_path_factory: pytest.TempPathFactory, identities: list[str]
) -> None:
    root = tmp_path_factory.mktemp("hostile") / "root"
    folder_for = {identity: folder_of(identity) for identity in dict.fromkeys(identities)}
    assert len(set(folder_for.values())) == len(folder_for)
    for identity, folder in folder_for.items():
        assert all(len(part.encode()) <= 255 for part in folder.split("/"))
        if not folder.startswith("%~") and identity:
            assert folder == identity or (folder.startswith("%") and unquote(folder) == identity)
        assert folder == folder.lstrip()  # or tables of tags would not find it
        path = root / folder / "00000000.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image")
        assert path.resolve().is_relative_to(root.resolve())
    for table in ("tags.csv", "identities.csv", "export.json"):
        (root / table).touch(exist_ok=False)
    assert [path for path in root.parent.iterdir() if path != root] == []
    assert sorted(open_folder(root).identities) == sorted(folder_for.values())


def test_hostile_identities_are_exported_inside_and_told(tmp_path: Path) -> None:
    folder = set_of(
        tmp_path / "set", [[tiny(number), tiny(100 + number)] for number in range(len(HOSTILE))], {"age": 2}
    )
    rename(folder, HOSTILE)
    before = set(tmp_path.iterdir())
    exported = export_folder(folder, tmp_path / "inside" / "out")
    assert set(tmp_path.iterdir()) - before == {tmp_path / "inside"}
    assert [path.name for path in (tmp_path / "inside").iterdir()] == ["out"]
    name_of = {row["folder"]: row["identity"] for row in rows_of(tmp_path / "inside" / "out" / "identities.csv")}
    assert exported.notes == [f"{len(name_of)} identities cannot name a folder; identities.csv tells theirs"]
    found = again(open_folder(tmp_path / "inside" / "out"), tmp_path / "inside" / "out", tmp_path / "again")
    assert sorted((name_of.get(name, name), *rest) for name, *rest in found) == sorted(content_of(folder))


@both
@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_an_image_that_changed_is_never_exported(small: Path, tmp_path: Path, export: Export, damage: str) -> None:
    folder = copied(small, tmp_path / "set")
    row = ShardSet(folder).table().to_pylist()[3]
    tar = folder / "000000.tar"
    content = bytearray(tar.read_bytes())
    if damage == "flipped":
        content[row["offset"] + row["size"] // 2] ^= 1
    else:
        del content[row["offset"] + row["size"] // 2 :]
    tar.write_bytes(content)
    says = {"flipped": f"sample {row['key']} is not the one", "cut": "000000.tar ends inside an image"}
    with pytest.raises(DataError, match=says[damage]):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@both
def test_an_out_that_holds_something_is_refused_and_kept(small: Path, tmp_path: Path, export: Export) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="already holds something"):
        export(small, tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="already holds something"):
        export(small, tmp_path / "file")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "mine", "out"]


@both
def test_an_unfinished_folder_of_something_else_is_left_alone(small: Path, tmp_path: Path, export: Export) -> None:
    unfinished = tmp_path / "out.unfinished"
    unfinished.mkdir()
    (unfinished / "job.json").write_text("{}")
    with pytest.raises(UsageError, match="no unfinished export"):
        export(small, tmp_path / "out")
    assert [path.name for path in unfinished.iterdir()] == ["job.json"]


@both
def test_two_exports_never_write_to_one_folder(small: Path, tmp_path: Path, export: Export) -> None:
    (unfinished := tmp_path / "out.unfinished").mkdir()
    descriptor = os.open(unfinished, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match="written by another process"):
        export(small, tmp_path / "out")
    os.close(descriptor)
    export(small, tmp_path / "out")


@both
def test_stopped_anywhere_it_leaves_no_out_and_starts_afresh_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Export
) -> None:
    folder = set_of(tmp_path / "set", [[tiny(0), tiny(1)], [tiny(2)]], {"age": 2})
    rename(folder, ["..", "a"])
    export(folder, tmp_path / "whole")
    whole = bytes_of(tmp_path / "whole")
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for operation in range(1000):
        out = tmp_path / f"out{operation}"
        (unfinished := tmp_path / f"out{operation}.unfinished").mkdir()
        (unfinished / "stale").mkdir()
        for stale in ("export.json", "stale.csv", "stale/00000000.jpg"):
            (unfinished / stale).touch()
        try:
            with monkeypatch.context() as patched:
                stop_before(patched, operation, "mkdir", "write_bytes", "write_text")
                export(folder, out)
            break
        except Killed:
            pass
        if not out.exists():
            export(folder, out)
        assert bytes_of(out) == whole, operation
    assert bytes_of(out) == whole
    assert operation > 8


@both
def test_memory_does_not_grow_with_the_images(tmp_path: Path, export: Export) -> None:
    peaks = []
    for number in (20, 120):
        face = bytes(cv2.imencode(".bmp", np.zeros((112, 112, 3), np.uint8))[1])  # 37 KB that decode at once
        folder = set_of(tmp_path / f"set{number}", [[face] * number])
        tracemalloc.start()
        export(folder, tmp_path / f"out{number}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 500_000  # holding the 100 images more would take 3,700,000
