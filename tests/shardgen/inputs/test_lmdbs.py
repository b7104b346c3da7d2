"""LMDB databases of HSFace's layout, whole and damaged."""

import shutil
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np
import pytest

from shardgen.errors import DataError
from shardgen.images import Unreadable
from shardgen.inputs.lmdbs import open_lmdb
from tests.shardgen.inputs.made import contents, write_lmdb

VALUES = {str(number): [b"face %d" % number * 1000, number // 2] for number in range(12)}
HELD = [(key, str(label), image) for key, (image, label) in VALUES.items()]


@pytest.mark.parametrize("place", ["folder", "file", "renamed"])
def test_a_database_is_a_folder_or_a_file(tmp_path: Path, place: str) -> None:
    path = write_lmdb(tmp_path / "faces", VALUES)
    if place == "file":
        path = path / "data.mdb"
    elif place == "renamed":
        path = Path(shutil.copy(path / "data.mdb", tmp_path / "hsface.lmdb"))
    assert contents(open_lmdb(path)) == HELD


@pytest.mark.parametrize(
    ("label", "identity"),
    [
        (7, "7"),
        ("ann", "ann"),
        (b"ann", "ann"),
        (0, "0"),
        (-1, None),
        ("", None),
        (None, None),
        (True, None),
        ([1], None),
    ],
)
@pytest.mark.parametrize("feature", [[], [b"512 floats"]])
def test_the_label_comes_last(tmp_path: Path, label: Any, identity: str | None, feature: list[bytes]) -> None:
    source = open_lmdb(write_lmdb(tmp_path, {"a": [b"face", *feature, label]}))
    assert contents(source) == [("a", identity, b"face")]
    if identity is None:
        with pytest.raises(Unreadable, match="no identity: its label"):
            source.read(0)


def test_values_as_old_msgpack_wrote_them_are_read(tmp_path: Path) -> None:
    value = msgpack.packb([b"\xff\xd8 face" * 100, "ann"], use_bin_type=False)
    assert contents(open_lmdb(write_lmdb(tmp_path, {"a": value}))) == [("a", "ann", b"\xff\xd8 face" * 100)]


def test_the_number_of_classes_does_not_matter(tmp_path: Path) -> None:
    assert contents(open_lmdb(write_lmdb(tmp_path, VALUES, classnum=msgpack.packb(6)))) == HELD


NO_MSGPACK = [
    b"",
    b"\xc1",
    b"\x92",
    b"\xdd\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x91" * 5000,
    b"\x81\x91\x01\x02",
]
NO_MSGPACK += [msgpack.packb([b"face", 1]) + b"x", msgpack.packb([b"face", 1])[:-1]]
NO_FACE = [{"image": b"face"}, [b"face"], [1, b"face"], b"face", [None, 1], [b"1", b"2", b"3", 4]]
BAD_VALUES = [*NO_MSGPACK, b"\xd6\xff\x00\x00\x00\x01", *map(msgpack.packb, NO_FACE)]


@pytest.mark.parametrize("value", BAD_VALUES)
def test_a_damaged_value_is_one_unreadable_record(tmp_path: Path, value: bytes) -> None:
    source = open_lmdb(write_lmdb(tmp_path, {"a": value, "b": [b"face", 3]}))
    with pytest.raises(Unreadable, match="damaged: its value is no"):
        source.read(0)
    assert (source.labels.tolist(), source.read(1)) == ([-1, 0], b"face")


@pytest.mark.parametrize("key", ["gone", "", "x" * 600])
def test_a_key_without_a_value_is_one_unreadable_record(tmp_path: Path, key: str) -> None:
    keys = msgpack.packb([key, "b"])
    source = open_lmdb(write_lmdb(tmp_path, {"b": [b"face", 3]}, keys=keys, len=msgpack.packb(2)))
    with pytest.raises(Unreadable, match="missing: the database holds nothing under this key"):
        source.read(0)
    assert source.read(1) == b"face"


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"len": b"\xc1"}, "no readable __len__ and __keys__"),
        ({"keys": msgpack.packb(3)}, "no readable __len__ and __keys__"),
        ({"keys": msgpack.packb([1, 2])}, "no readable __len__ and __keys__"),
        ({"keys": msgpack.packb([b"\xff"])}, "no readable __len__ and __keys__"),
        ({"keys": b"\xdd\xff\xff\xff\xff"}, "no readable __len__ and __keys__"),
        ({"len": msgpack.packb(13)}, "promises 13 records under __len__ and lists 12 keys"),
        ({"keys": msgpack.packb([]), "len": msgpack.packb(0)}, "lists no record"),
    ],
)
def test_a_database_of_another_layout_is_refused(tmp_path: Path, entries: dict[str, bytes], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        open_lmdb(write_lmdb(tmp_path, VALUES, **entries))


def test_a_database_without_keys_is_refused(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path)) as database, database.begin(write=True) as transaction:
        transaction.put(b"0", b"face")
    with pytest.raises(DataError, match="no readable __len__ and __keys__"):
        open_lmdb(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, 5000, 8192, 40_000, -1])
def test_a_cut_database_is_refused(tmp_path: Path, keep: int) -> None:
    file = write_lmdb(tmp_path, VALUES) / "data.mdb"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"is cut|is no LMDB database"):
        open_lmdb(tmp_path)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"<html>not found</html>" * 1000)
    with pytest.raises(DataError, match="is no LMDB database"):
        open_lmdb(tmp_path)


def test_sources_and_parts_of_one_database_live_side_by_side(tmp_path: Path) -> None:
    first, second = (open_lmdb(write_lmdb(tmp_path, VALUES)) for _ in range(2))
    parts = [source.part(np.array([11])) for source in (first, second)]
    assert {part.read(0) for part in parts} == {VALUES["11"][0]}
    del first, second
    assert parts[0].read(0) == VALUES["11"][0]
