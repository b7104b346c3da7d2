"""Parquet tables: columns found, classes named, images unpacked once and gone with the process."""

import gc
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardgen.errors import DataError, UsageError
from shardgen.images import Unreadable
from shardgen.inputs.parquets import open_parquet
from tests.shardgen.inputs.made import contents, images_column, write_parquet

FILES = {f"{number}.jpg": b"face %d" % number for number in range(7)}
LABELS = [0, 0, 1, 1, 2, 2, 2]


def write(path: Path, features: Mapping[str, Any] | None = None, **columns: Any) -> Path:
    return write_parquet(path, {"image": images_column(FILES), "label": LABELS} | columns, features)


def test_shards_of_a_split_are_one_input(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "data" / f"train-{number:05}-of-00003.parquet")
    assert contents(open_parquet(tmp_path)) == 3 * [
        (name, str(label), image) for (name, image), label in zip(FILES.items(), LABELS, strict=True)
    ]


def test_plain_bytes_are_named_by_file_and_row(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_parquet(tmp_path / "data" / f"{name}.parquet", {"face": [b"1", b"2", b"3"], "identity": ["x", "y", "x"]})
    source = open_parquet(tmp_path)
    assert list(source.names()) == [f"data/{name}.parquet:{row}" for name in ("a", "b") for row in range(3)]
    assert list(open_parquet(tmp_path / "data" / "a.parquet").names()) == [f"a.parquet:{row}" for row in range(3)]


def test_class_labels_are_called_by_their_names(tmp_path: Path) -> None:
    features = {"label": {"names": ["ann", "bob"], "_type": "ClassLabel"}}
    path = write(tmp_path / "a.parquet", features, label=[0, 1, 0, -1, 2, None, 1])
    identities = [identity for _, identity, _ in contents(open_parquet(path))]
    assert identities == ["ann", "bob", "ann", None, None, None, "bob"]


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": {"features": {"label": {"dtype": "int64"}}}}', b"\xff"])
def test_other_metadata_leaves_numbers_as_they_are(tmp_path: Path, metadata: bytes) -> None:
    table = pq.read_table(write(tmp_path / "a.parquet")).replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    assert open_parquet(tmp_path).identities == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("values", "kind", "identities"),
    [
        (["b", "a"], pa.string(), ["b", "a"]),
        (["b", "a"], pa.large_string(), ["b", "a"]),
        (["b", "a"], pa.dictionary(pa.int8(), pa.string()), ["b", "a"]),
        ([3, 1], pa.uint16(), ["3", "1"]),
        ([3.0, 0.5], pa.float64(), ["3"]),
        (["", None], pa.string(), []),
        ([True, False], pa.bool_(), []),
    ],
)
def test_identities_are_text_or_whole_numbers(
    tmp_path: Path, values: list[Any], kind: Any, identities: list[str]
) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"image": [b"1", b"2"], "identity": pa.array(values, kind)})
    assert open_parquet(path).identities == identities


def test_the_identity_column_can_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", person=list("abcdefg"))
    assert open_parquet(path, "person").identities == list("abcdefg")
    with pytest.raises(UsageError, match="has no column nobody; it has image, label, person"):
        open_parquet(path, "nobody")


def test_the_image_column_is_told_from_others(tmp_path: Path) -> None:
    others = {"thumbnail": [b"t"], "feature": [b"f"]}
    source = open_parquet(write_parquet(tmp_path / "a.parquet", {**others, "img": [b"face"], "id": [1]}))
    assert source.read(0) == b"face"
    assert open_parquet(write_parquet(tmp_path / "b.parquet", {"thumbnail": [b"t"], "id": [1]})).read(0) == b"t"
    for columns, number in ((others, 2), ({"text": ["x"]}, 0), ({"image": pa.array([{"path": "x"}])}, 0)):
        with pytest.raises(DataError, match=rf"has {number} columns of bytes among .*one should be called image"):
            open_parquet(write_parquet(tmp_path / "c.parquet", columns))


def test_a_row_without_bytes_is_unreadable_and_the_others_are_not(tmp_path: Path) -> None:
    column = pa.array(
        [{"bytes": None, "path": "/etc/passwd"}, None, {"bytes": b"", "path": None}, {"bytes": b"face", "path": "4"}]
    )
    source = open_parquet(write_parquet(tmp_path / "a.parquet", {"image": column, "id": [1, 2, 3, 4]}))
    assert list(source.names()) == ["/etc/passwd", "a.parquet:1", "a.parquet:2", "4"]
    for record in (0, 1):
        with pytest.raises(Unreadable, match="no image"):
            source.read(record)
    assert [source.read(2), source.read(3)] == [b"", b"face"]


def test_a_changed_image_of_the_same_size_is_another_input(tmp_path: Path) -> None:
    prints = [
        open_parquet(write_parquet(tmp_path / name / "a.parquet", {"image": [image], "id": [1]})).fingerprint()
        for name, image in (("a", b"1"), ("b", b"1"), ("c", b"2"))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_the_unpacked_images_go_with_their_source(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    source = open_parquet(tmp_path / "a.parquet", spool_folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    part, spool = source.part(np.array([3])), source.archives[0]
    assert (part.read(0), spool.exists()) == (b"face 3", True)
    del source, part
    gc.collect()
    assert not spool.exists()


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_cut_table_is_refused(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"a\.parquet is no whole parquet table"):
        open_parquet(path)


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no row"):
        open_parquet(write_parquet(tmp_path / "a.parquet", {"image": pa.array([], pa.binary())}))


def test_a_folder_with_no_room_for_the_images_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=r"nowhere \(No such file or directory\); name another folder"):
        open_parquet(path, spool_folder=tmp_path / "nowhere")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(UsageError, match=rf"unpacked to {tmp_path} \(File too large\)"):
            open_parquet(path, spool_folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
