"""Faces of shard sets and of files of embeddings: who is who, in one numbering."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.embed import Embeddings
from eval.faces import Faces, faces_of, in_common, load_embeddings
from pipeline.catalog import open_catalog
from pipeline.reader import ShardReader
from shardgen.errors import DataError, UsageError
from shardgen.procedural import GROUPS
from tests.support import make_set


def drawn(num_faces: int, size: int = 8) -> Embeddings:
    rows = np.random.default_rng(num_faces).normal(size=(num_faces, size)).astype(np.float32)
    unit: Embeddings = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def people(faces: Faces) -> list[str]:
    return [faces.names[number] for number in faces.identities]


def tags(faces: Faces, axis: str) -> list[str]:
    values, codes = faces.groups[axis]
    return [values[code] for code in codes]


def write_npz(path: Path, content: Mapping[str, Any]) -> Path:
    arrays: dict[str, Any] = {name: np.array(column) for name, column in content.items()}
    np.savez(path.with_suffix(".npz"), **arrays)
    return path.with_suffix(".npz")


def write_parquet(path: Path, content: Mapping[str, Any]) -> Path:
    rows = np.asarray(content["embeddings"])
    columns = {name: pa.array(column) for name, column in content.items() if name != "embeddings"}
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    pq.write_table(pa.table(columns), path.with_suffix(".parquet"), row_group_size=2)
    return path.with_suffix(".parquet")


Write = Callable[[Path, Mapping[str, Any]], Path]
both = pytest.mark.parametrize("write", [write_npz, write_parquet])


def test_the_faces_of_a_set_have_its_names_keys_and_tags(small_set: Path) -> None:
    catalog = open_catalog({"small": small_set})
    embeddings = drawn(len(catalog))
    faces = faces_of(catalog, "small", embeddings)
    reader = ShardReader(catalog)
    assert len(faces) == 32
    assert faces.embeddings is embeddings
    assert people(faces) == [catalog.identities[label][1] for label in catalog.label]
    assert all(reader.describe(row).startswith(f"{key}.") for row, key in enumerate(faces.keys))
    assert set(tags(faces, "group")) == set(GROUPS)
    assert set(tags(faces, "origin")) == {"authentic"}
    of_person = dict(zip(people(faces), tags(faces, "group"), strict=True))
    assert len(of_person) == 8
    assert [of_person[name] for name in people(faces)] == tags(faces, "group")


def test_a_person_in_two_sets_of_a_catalog_has_one_number(small_set: Path, tmp_path: Path) -> None:
    other = make_set(tmp_path / "other", range(6, 10), 2, tagged=False, origin="synthetic")
    catalog = open_catalog({"small": small_set, "other": other})
    first, second = (faces_of(catalog, name, drawn(len(catalog.ids_of(name)))) for name in ("small", "other"))
    assert first.names == second.names == tuple(sorted(first.names))
    assert len(first.names) == 10
    shared = np.isin(first.identities, second.identities)
    assert {name for name, is_shared in zip(people(first), shared, strict=True) if is_shared} == {"00006", "00007"}
    assert set(tags(second, "group")) == {"unknown"}
    assert set(tags(second, "origin")) == {"synthetic"}


def test_a_selection_keeps_what_is_known_of_each_face(small_set: Path) -> None:
    catalog = open_catalog({"small": small_set})
    faces = faces_of(catalog, "small", drawn(len(catalog)))
    rows = np.array([30, 2, 2, 11])
    some = faces.select(rows)
    assert len(some) == 4
    np.testing.assert_array_equal(some.embeddings, faces.embeddings[rows])
    assert people(some) == [people(faces)[row] for row in rows]
    assert list(some.keys) == [faces.keys[row] for row in rows]
    assert tags(some, "group") == [tags(faces, "group")[row] for row in rows]
    np.testing.assert_array_equal(some.identities, faces.identities[rows])


@both
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_file_of_embeddings_gives_unit_rows_with_names_keys_and_tags(
    write: Write, dtype: type, tmp_path: Path
) -> None:
    rows = (drawn(4) * np.array([[0.5], [3], [400], [1]])).astype(dtype)
    content = {
        "embeddings": rows,
        "identity": ["bo", "al", "bo", "cy"],
        "key": ["a/1", "a/2", "b/1", "b/2"],
        "skin": ["light", "", "dark", "unknown"],
        "age": [20, 30, 20, 4],
        "path": ["1.jpg", "2.jpg", "3.jpg", "4.jpg"],
    }
    faces = load_embeddings(write(tmp_path / "faces", content))
    assert faces.embeddings.dtype == np.float32
    np.testing.assert_allclose(faces.embeddings, drawn(4), atol=2e-3 if dtype is np.float16 else 1e-6)
    assert faces.names == ("al", "bo", "cy")
    assert faces.identities.tolist() == [1, 0, 1, 2]
    assert faces.keys == ("a/1", "a/2", "b/1", "b/2")
    assert {axis: tags(faces, axis) for axis in faces.groups} == {
        "skin": ["light", "unknown", "dark", "unknown"],
        "age": ["20", "30", "20", "4"],
    }
    assert all(values[0] == "unknown" for values, _ in faces.groups.values())


@both
def test_identities_may_be_numbers_and_faces_without_keys_are_counted(write: Write, tmp_path: Path) -> None:
    faces = load_embeddings(write(tmp_path / "faces", {"embeddings": drawn(3), "identity": [12, 7, 12]}))
    assert people(faces) == ["12", "7", "12"]
    assert faces.keys == ("0", "1", "2")
    assert faces.groups == {}


def test_columns_of_tables_may_lack_tags_and_be_dictionaries(tmp_path: Path) -> None:
    columns = {
        "embedding": pa.array(drawn(3).tolist(), pa.list_(pa.float32())),
        "identity": pa.array(["al", "bo", "al"]).dictionary_encode(),
        "skin": pa.array(["dark", None, "light"]),
    }
    pq.write_table(pa.table(columns), tmp_path / "faces.parquet")
    faces = load_embeddings(tmp_path / "faces.parquet")
    np.testing.assert_allclose(faces.embeddings, drawn(3), rtol=1e-6)
    assert people(faces) == ["al", "bo", "al"]
    assert tags(faces, "skin") == ["dark", "unknown", "light"]


@both
def test_embeddings_that_cannot_be_compared_are_counted_and_named(write: Write, tmp_path: Path) -> None:
    rows = drawn(9)
    rows[1, 3], rows[4, 0], rows[7] = np.nan, -np.inf, 0
    content = {"embeddings": rows, "identity": list("abcabcabc"), "key": [f"face {number}" for number in range(9)]}
    path = write(tmp_path / "faces", content)
    expected = r"faces\.\w+: 3 of 9 .* 2 are not finite and 1 of length zero \(face 1, face 4, face 7\)"
    with pytest.raises(DataError, match=expected):
        load_embeddings(path)


FINE = {"embeddings": drawn(3), "identity": ["a", "b", "a"]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"embedding": drawn(3), "identity": ["a", "b", "a"]}, "has no 'embeddings', only embedding, identity"),
        ({"embeddings": drawn(3)}, "has no 'identity', only embeddings"),
        (FINE | {"embeddings": drawn(3)[0]}, r"float32 \[8\]; give floats"),
        (FINE | {"embeddings": drawn(3).astype(np.int32)}, r"int32 \[3, 8\]; give floats"),
        (FINE | {"identity": ["a", "b"]}, "3 embeddings, but 'identity' of 2"),
        (FINE | {"identity": [["a"], ["b"], ["a"]]}, r"'identity' is <U1 \[3, 1\]"),
        (FINE | {"skin": [0.5, 0.1, 0.2]}, r"'skin' is float64 \[3\]; give texts or whole numbers"),
        (FINE | {"skin": np.array(["x", None, 1], object)}, "allow_pickle"),
    ],
)
def test_what_is_wrong_in_an_npz_is_said_in_one_line(content: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        load_embeddings(write_npz(tmp_path / "faces", content))
    assert "\n" not in str(caught.value)


LISTS = [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"embeddings": LISTS, "identity": ["a", "b"]}, "has no 'embedding', only embeddings, identity"),
        ({"embedding": [[1.0, 2.0], [3.0]], "identity": ["a", "b"]}, "differ in length"),
        ({"embedding": [[1.0, 2.0], None], "identity": ["a", "b"]}, "missing"),
        ({"embedding": [[1.0, 2.0], [3.0, None]], "identity": ["a", "b"]}, "1 of 2 .* 1 are not finite"),
        ({"embedding": LISTS, "identity": ["a", None]}, "1 rows have no identity"),
        ({"embedding": LISTS, "identity": ["a", "b"], "skin": [0.5, 1.0]}, "column 'skin' is double"),
    ],
)
def test_what_is_wrong_in_a_table_is_said_in_one_line(columns: dict[str, Any], reason: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "faces.parquet")
    with pytest.raises(DataError, match=reason) as caught:
        load_embeddings(tmp_path / "faces.parquet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["faces.npz", "faces.parquet"])
def test_files_that_are_damaged_or_absent_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"{name} does not exist"):
        load_embeddings(tmp_path / name)
    whole = (write_npz if name.endswith(".npz") else write_parquet)(tmp_path / "faces", FINE).read_bytes()
    for content in (b"", b"faces", whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} is no \.\w+ file, or damaged"):
            load_embeddings(tmp_path / name)
    with pytest.raises(UsageError, match=r"\.npz or \.parquet"):
        load_embeddings(tmp_path / "faces.csv")


def test_faces_of_several_files_come_into_one_numbering() -> None:
    first = Faces(
        drawn(3),
        np.array([0, 1, 1]),
        ("al", "cy"),
        ("1", "2", "3"),
        {"skin": (("unknown", "dark"), np.array([0, 1, 1], np.int16))},
    )
    second = Faces(
        drawn(2),
        np.array([1, 0]),
        ("bo", "cy"),
        ("4", "5"),
        {
            "skin": (("unknown", "light", "dark"), np.array([2, 1], np.int16)),
            "age": (("unknown", "7"), np.array([1, 0], np.int16)),
        },
    )
    found = in_common([first, second])
    assert [one.names for one in found] == [("al", "bo", "cy")] * 2
    assert [people(one) for one in found] == [people(first), people(second)]
    assert [tags(one, "skin") for one in found] == [tags(first, "skin"), tags(second, "skin")]
    assert [tags(one, "age") for one in found] == [["unknown"] * 3, ["7", "unknown"]]
    assert found[0].groups["skin"][0] == found[1].groups["skin"][0]
