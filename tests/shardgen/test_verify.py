"""Whatever changes in a set is reported: every byte by its hash, every contradiction by `deep`."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardgen.errors import DataError, UsageError
from shardgen.images import Prepared
from shardgen.manifest import MANIFEST, REJECTED, hash_file, read_manifest, write_manifest
from shardgen.procedural import draw_face, encode
from shardgen.retag import records_of, retag
from shardgen.shardset import ShardSet
from shardgen.tags import join_pattern
from shardgen.tar import TarWriter
from shardgen.verify import faults
from tests.support import make_set

Members = list[tuple[str, bytes]]


@pytest.fixture
def copied(small_set: Path, tmp_path: Path) -> Path:
    """A copy of the small set, to be damaged."""
    return shutil.copytree(small_set, tmp_path / "set")


def found(folder: Path, deep: bool = False) -> list[str]:
    try:
        return list(faults(folder, deep))
    except DataError as error:  # the manifest itself
        return [str(error)]


def reseal(folder: Path, **changes: Any) -> None:
    """Write a manifest that vouches for the files as they are now."""
    manifest = read_manifest(folder)
    shards = [
        shard.model_copy(
            update={"files": {suffix: hash_file(folder / f"{shard.name}{suffix}") for suffix in shard.files}}
        )
        for shard in manifest.shards
    ]
    sealed = {"shards": shards, "rejected_file": hash_file(folder / REJECTED)}
    write_manifest(folder, manifest.model_copy(update=sealed | changes))


@pytest.mark.parametrize("deep", [False, True])
def test_an_intact_set_has_no_fault(small_set: Path, deep: bool) -> None:
    assert found(small_set, deep) == []


@pytest.mark.parametrize("deep", [False, True])
def test_any_flipped_byte_is_reported(copied: Path, deep: bool) -> None:
    names = sorted(path.name for path in copied.iterdir())

    @settings(deadline=None, max_examples=60 if deep else 150)
    @given(name=st.sampled_from(names), position=st.integers(0, 10**6), flip=st.integers(1, 255))
    def flip_one(name: str, position: int, flip: int) -> None:
        path = copied / name
        original = path.read_bytes()
        damaged = bytearray(original)
        damaged[position % len(original)] ^= flip
        path.write_bytes(damaged)
        try:
            reported = found(copied, deep)
            assert reported
            assert all(name in fault or name.partition(".")[0] in fault for fault in reported)
        finally:
            path.write_bytes(original)

    flip_one()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a byte less": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
def test_any_longer_shorter_or_missing_file_is_reported(copied: Path, damage: str, deep: bool) -> None:
    for path in sorted(copied.iterdir()):
        original = path.read_bytes()
        DAMAGE[damage](path)
        reported = found(copied, deep)
        assert any(path.name in fault for fault in reported), path.name
        assert all("\n" not in fault for fault in reported)
        path.write_bytes(original)


def test_a_folder_in_place_of_a_file_is_reported(copied: Path) -> None:
    (copied / "000000.tar").unlink()
    (copied / "000000.tar").mkdir()
    assert any("000000.tar" in fault for fault in found(copied))


@pytest.mark.parametrize("name", ["000000.idx.part", "000004.tar", "notes.txt", ".hidden"])
def test_a_file_too_many_is_reported(copied: Path, name: str) -> None:
    (copied / name).write_text("mine")
    assert [name in fault for fault in found(copied)] == [True]


def test_a_shard_of_another_set_is_reported(copied: Path, tmp_path: Path) -> None:
    other = make_set(tmp_path / "other", seed=1, shard_samples=10)
    shutil.copy(other / "000001.tar", copied)
    assert any("000001.tar" in fault for fault in found(copied))


def test_an_unfinished_or_missing_set_is_refused(copied: Path, tmp_path: Path) -> None:
    (copied / MANIFEST).unlink()
    with pytest.raises(DataError, match="did not finish"):
        list(faults(copied))
    with pytest.raises(UsageError, match="not a folder"):
        list(faults(tmp_path / "nowhere"))


def test_a_set_sealed_anew_without_a_change_is_intact(copied: Path) -> None:
    reseal(copied)
    assert found(copied, deep=True) == []


def rewrite_tar(folder: Path, change: Callable[[Members], Members]) -> None:
    """Write shard 0's tar and index again with changed members, and let the manifest vouch for them."""
    with tarfile.open(folder / "000000.tar") as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    changed = change(members)
    stream = io.BytesIO()
    writer = TarWriter(stream)
    for (name, image), (_, text) in zip(changed[::2], changed[1::2], strict=True):
        key, _, extension = name.partition(".")
        writer.add_samples([(key, extension, image, text)])
    (folder / "000000.idx").write_bytes(writer.finish())
    (folder / "000000.tar").write_bytes(stream.getvalue())
    reseal(folder)


def replace_text(change: Callable[[dict[str, Any]], object]) -> Callable[[Members], Members]:
    """Return a change of the first sample's JSON that keeps its layout."""

    def changed(members: Members) -> Members:
        fields = json.loads(members[1][1])
        text = change(fields) or fields
        content = text if isinstance(text, bytes) else json.dumps(text).encode()
        return [members[0], (members[1][0], content), *members[2:]]

    return changed


TARS: dict[str, Callable[[Members], Members]] = {
    "another image": lambda members: [(members[0][0], encode(draw_face(9, 9, 9))), *members[1:]],
    "a flipped byte": lambda members: [
        (members[0][0], members[0][1][:900] + b"\0" + members[0][1][901:]),
        *members[1:],
    ],
    "a cut image": lambda members: [(members[0][0], members[0][1][:-2]), *members[1:]],
    "two images exchanged": lambda members: [
        (members[0][0], members[2][1]),
        members[1],
        (members[2][0], members[0][1]),
        *members[3:],
    ],
    "samples in another order": lambda members: members[-2:] + members[:-2],
    "a sample less": lambda members: members[2:],
    "a sample twice": lambda members: members[:2] + members,
    "another identity": replace_text(lambda fields: fields.update(identity="somebody")),
    "another tag": replace_text(lambda fields: fields["tags"].update(group="nowhere")),
    "another data set": replace_text(lambda fields: fields.update(dataset="other")),
    "no identity": replace_text(lambda fields: fields.pop("identity") and None),
    "no json": replace_text(lambda _: b"\xff"),
    "a list": replace_text(lambda _: b"[]"),
}


@pytest.mark.parametrize("change", TARS)
def test_deep_finds_a_tar_that_contradicts_its_table(copied: Path, change: str) -> None:
    rewrite_tar(copied, TARS[change])
    assert found(copied) == []
    reported = found(copied, deep=True)
    assert reported
    assert all("000000" in fault for fault in reported)


def test_deep_finds_a_tar_made_by_another_program(copied: Path) -> None:
    with tarfile.open(copied / "000000.tar") as tar:
        members = [(member, tar.extractfile(member)) for member in tar]
        with tarfile.open(copied / "again", "w") as again:
            folder = tarfile.TarInfo("images")
            folder.type = tarfile.DIRTYPE
            again.addfile(folder)
            for member, content in members[:-1]:  # as many members as before
                again.addfile(member, content)
    (copied / "again").replace(copied / "000000.tar")
    reseal(copied)
    assert any("000000" in fault for fault in found(copied, deep=True))


OTHER_VALUES: Mapping[str, Any] = {
    "key": "0000ffff",
    "offset": 513,
    "size": 7,
    "identity": 3,
    "dataset": "other",
    "origin": "synthetic",
    "group": 0,
    "width": 1,
    "height": 1,
    "content_hash": bytes(16),
    "source": "elsewhere",
}


def rewrite_table(folder: Path, column: str, value: Any) -> None:
    """Change one value of shard 0's table and let the manifest vouch for it."""
    table = pq.read_table(folder / "000000.parquet")
    values = [value, *table[column].to_pylist()[1:]]
    field = table.schema.field(column)
    changed = table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))
    pq.write_table(changed, folder / "000000.parquet")
    reseal(folder)


def test_every_column_is_compared(small_set: Path) -> None:
    assert pq.read_table(small_set / "000000.parquet").column_names == list(OTHER_VALUES)


@pytest.mark.parametrize(
    ("column", "value"), [*OTHER_VALUES.items(), ("identity", -1), ("identity", 999), ("group", 99)]
)
def test_deep_finds_a_table_that_contradicts_its_tar(copied: Path, column: str, value: Any) -> None:
    first = pq.read_table(copied / "000000.parquet")[column][0].as_py()
    rewrite_table(copied, column, value if value != first else 4)
    assert found(copied) == []
    assert any("000000" in fault for fault in found(copied, deep=True))


INDEXES: dict[str, Callable[[list[str]], list[str]]] = {
    "two lines exchanged": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    "another offset": lambda lines: [lines[0], lines[1].replace("512", "513", 1), *lines[2:]],
    "another count": lambda lines: ["v1.2 9", *lines[1:]],
    "another version": lambda lines: ["v1.1 10", *lines[1:]],
    "a line less": lambda lines: lines[:-1],
}


@pytest.mark.parametrize("change", INDEXES)
def test_deep_finds_an_index_that_contradicts_its_tar(copied: Path, change: str) -> None:
    path = copied / "000000.idx"
    lines = path.read_text().splitlines()
    changed = INDEXES[change](lines)
    assert changed != lines
    path.write_text("".join(f"{line}\n" for line in changed))
    reseal(copied)
    assert any("000000" in fault for fault in found(copied, deep=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_samples": 31},
        {"num_read": 33},
        {"num_identities": 7},
        {"num_rejected": 1},
        {"name": "other"},
        {"origin": "synthetic"},
        {"identities": [f"{number:05d}" for number in (1, 0, *range(2, 8))]},
        {"counts": {"group": {"unknown": 0, "east": 7, "north": 9, "south": 8, "west": 8}}},
        {"axes": {"group": ["unknown", "west", "south", "north", "east"]}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_deep_finds_a_manifest_that_contradicts_its_files(copied: Path, changes: dict[str, Any]) -> None:
    reseal(copied, **changes)
    assert found(copied, deep=True)


def test_deep_finds_an_image_that_does_not_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = encode(draw_face(0, 0, 0))[:-2]
    with monkeypatch.context() as patched:
        patched.setattr("shardgen.images.prepare", lambda data, *_: Prepared(data, "jpg", 112, 112))
        patched.setattr("shardgen.procedural.encode", lambda _: cut)
        out = make_set(tmp_path / "set", range(1), 1)
    assert found(out) == []
    assert any("does not decode" in fault for fault in found(out, deep=True))


@pytest.fixture
def retagged(copied: Path) -> Path:
    """The copied set with a second and a third revision of its tags."""
    for axis in ("parity", "third"):
        retag(copied, [(axis, join_pattern(f"(?P<{axis}>[0-9])[.]jpg", records_of(ShardSet(copied)).names()))])
    assert read_manifest(copied).revision == 3
    return copied


@pytest.mark.parametrize("deep", [False, True])
def test_every_file_of_every_revision_is_under_a_hash(retagged: Path, deep: bool) -> None:
    assert found(retagged, deep) == []
    names = sorted(path.name for path in retagged.iterdir())
    assert {"manifest.r1.json", "manifest.r2.json", "000000.r3.parquet"} <= set(names)
    for name in names:
        path = retagged / name
        original = path.read_bytes()
        for damage in (original[:-1], original[:7] + bytes([original[7] ^ 1]) + original[8:], b"", None):
            path.unlink() if damage is None else path.write_bytes(damage)
            assert any(name in fault for fault in found(retagged, deep)), name
            path.write_bytes(original)


def change_revision(folder: Path, column: str, value: Any, **changes: Any) -> None:
    """Change a value of the third revision's first table and let its manifest vouch for it."""
    path = folder / "000000.r3.parquet"
    table = pq.read_table(path)
    field = table.schema.field(column)
    values = pa.array([value, *table[column].to_pylist()[1:]], field.type)
    pq.write_table(table.set_column(table.schema.get_field_index(column), field, values), path)
    reseal(folder, **changes)


@pytest.mark.parametrize(("column", "value"), [("identity", 3), ("size", 7), ("third", 99), ("third", 0)])
def test_deep_finds_a_revision_that_is_more_than_other_tags(retagged: Path, column: str, value: int) -> None:
    change_revision(retagged, column, value)
    assert found(retagged) == []
    assert found(retagged, deep=True)


@pytest.mark.parametrize(
    "changes", [{"identities": [str(number) for number in range(8)]}, {"counts": {}}], ids=["identities", "counts"]
)
def test_deep_finds_a_later_manifest_that_contradicts_the_first(retagged: Path, changes: dict[str, Any]) -> None:
    reseal(retagged, **changes)
    assert found(retagged, deep=True)


def test_order_statistics_that_the_tables_do_not_bear_out_are_named(copied: Path) -> None:
    order = read_manifest(copied).order
    assert order is not None
    reseal(copied, order=order.model_copy(update={"identities_per_shard": 77.0}))
    assert any("order is adjacent_same_identity" in fault for fault in found(copied, deep=True))
