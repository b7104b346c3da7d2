"""Tables of tags: what is read, what is refused, and how rows find their records."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardgen.errors import DataError, UsageError
from shardgen.tag_tables import TagTable, join_table, read_table
from shardgen.tags import RESERVED_COLUMNS, Records, Tags

NAMES = ["ann/1.jpg", "bob/1.jpg", "ann/2.jpg", "cy/1.jpg"]
FACES = Records(lambda: NAMES, ["ann", "bob", "cy"], np.array([0, 1, 0, 2], np.int32))


def table(tmp_path: Path, text: str) -> TagTable:
    path = tmp_path / "tags.csv"
    path.write_text(text, encoding="utf-8")
    return read_table(path)


def parquet(tmp_path: Path, columns: dict[str, Any]) -> TagTable:
    pq.write_table(pa.table(columns), tmp_path / "tags.parquet")
    return read_table(tmp_path / "tags.parquet")


def joined(tmp_path: Path, text: str, ignore_extra: bool = False) -> list[dict[str, str]]:
    return values(join_table(table(tmp_path, text), FACES, ignore_extra))


def values(tags: Tags) -> list[dict[str, str]]:
    return [tags.values_of(record) for record in range(len(tags.codes))]


def test_a_table_by_identity_tags_every_image_of_it(tmp_path: Path) -> None:
    assert joined(tmp_path, "gender,identity,age\nf,ann,30\nm,bob,9\nf,cy,50\n") == [
        {"gender": "f", "age": "30"},
        {"gender": "m", "age": "9"},
        {"gender": "f", "age": "30"},
        {"gender": "f", "age": "50"},
    ]


def test_a_table_by_path_tags_single_images(tmp_path: Path) -> None:
    tags = joined(tmp_path, "path,pose\nann/2.jpg,left\ncy/1.jpg,right\n")
    assert [one["pose"] for one in tags] == ["unknown", "unknown", "left", "right"]


def test_a_table_by_key_tags_samples(tmp_path: Path) -> None:
    tags = joined(tmp_path, "key,pose\n00000003,right\n00000000,left\n")
    assert [one["pose"] for one in tags] == ["left", "unknown", "unknown", "right"]


def test_what_no_row_or_an_empty_field_says_stays_unknown(tmp_path: Path) -> None:
    tags = joined(tmp_path, "identity,gender,age\nann,,30\nbob,Unknown, \n")
    assert tags == [
        {"gender": "unknown", "age": "30"},
        {"gender": "unknown", "age": "unknown"},
        {"gender": "unknown", "age": "30"},
        {"gender": "unknown", "age": "unknown"},
    ]


def test_a_record_without_identity_is_unknown(tmp_path: Path) -> None:
    rows = table(tmp_path, "identity,gender\nann,f\nbob,m\ncy,x\n")
    tags = join_table(rows, Records(FACES.names, FACES.identities, np.array([2, -1, 0, -1], np.int32)))
    assert [value["gender"] for value in values(tags)] == ["x", "unknown", "f", "unknown"]


def test_values_that_no_record_has_are_dropped(tmp_path: Path) -> None:
    rows = table(tmp_path, "identity,age\nann,9\nbob,10\ndan,5\n")
    assert join_table(rows, FACES, ignore_extra=True).axes == {"age": ["unknown", "9", "10"]}


def test_blanks_quotes_blank_lines_and_a_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    plain = joined(tmp_path, "identity,gender\nann,f\nbob,m\n")
    assert joined(tmp_path, '\ufeff identity , gender\r\n"ann", f\r\n\r\nbob ,"m"\r\n') == plain
    assert joined(tmp_path, '\ufeff"identity",gender\nann,f\nbob,m') == plain


def test_a_quoted_field_may_hold_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    tags = joined(tmp_path, 'identity,g\nann,"a,b"\nbob,"say ""x"""\ncy,"two\nlines"\n')
    assert [one["g"] for one in tags] == ["a,b", 'say "x"', "a,b", "two\nlines"]


@pytest.mark.parametrize("spelling", ["file", "Filename", "IMAGE", "img", "image_path"])
def test_usual_spellings_of_path_are_understood(tmp_path: Path, spelling: str) -> None:
    assert table(tmp_path, f"{spelling},g\nann/1.jpg,f\n").key == "path"


@pytest.mark.parametrize("spelling", ["id", "Subject", "CLASS", "Identity"])
def test_usual_spellings_of_identity_are_understood(tmp_path: Path, spelling: str) -> None:
    assert table(tmp_path, f"{spelling},g\nann,f\n").key == "identity"


def test_a_usual_spelling_is_an_axis_beside_an_exact_name(tmp_path: Path) -> None:
    rows = table(tmp_path, "path,class\nann/1.jpg,adult\n")
    assert (rows.key, rows.tags.axes) == ("path", {"class": ["unknown", "adult"]})


@pytest.mark.parametrize("header", ["", "gender,age", "identity,path,gender", "file,id,gender", "key,path,g"])
def test_a_table_needs_exactly_one_key_column(tmp_path: Path, header: str) -> None:
    columns = header.replace(",", ", ") or r"\(none\)"
    with pytest.raises(UsageError, match=f"columns {columns} need exactly one named identity, path or key"):
        table(tmp_path, header + "\na,b,c\n")


@pytest.mark.parametrize(
    "axis", [*sorted(RESERVED_COLUMNS - {"identity", "key", "path"}), "", "age group", "age-group", "é"]
)
def test_a_name_that_a_column_cannot_have_is_refused(tmp_path: Path, axis: str) -> None:
    with pytest.raises(UsageError, match="cannot name a tag axis"):
        table(tmp_path, f"identity,{axis}\n")


def test_an_axis_may_begin_with_a_digit(tmp_path: Path) -> None:
    assert joined(tmp_path, "identity,5_o_Clock_Shadow\nann,yes\n")[0] == {"5_o_Clock_Shadow": "yes"}


def test_a_column_may_not_repeat(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="repeats"):
        table(tmp_path, "identity,age,age\n")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_without_any_tag_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UsageError, match="no column beside its key"):
        table(tmp_path, "identity\nann\n") if kind == "csv" else parquet(tmp_path, {"identity": ["ann"]})


@pytest.mark.parametrize("text", ["identity,g", "identity,g\n", "identity,g\n\n\n"])
def test_a_table_without_any_row_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="no row"):
        table(tmp_path, text)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        read_table(tmp_path / "tags.csv")


@pytest.mark.parametrize(
    ("text", "key", "absent"),
    [
        ("identity,g\nann,f\ndan,m\n", "identity", r"dan \(the data has, for one, ann\)"),
        ("path,g\nann/1.jpg,f\ndan/1.jpg,m\n", "path", r"dan/1.jpg \(the data has, for one, ann/1.jpg\)"),
        ("path,g\nann/1.jpg,f\ntrain/bob/1.jpg,m\n", "path", r"train/bob/1.jpg \(the data calls it bob/1.jpg\)"),
        ("path,g\nann/1.jpg,f\n2.jpg,m\n", "path", r"2.jpg \(the data calls it ann/2.jpg\)"),
        ("key,g\n00000000,f\n00000004,m\n", "key", r"00000004 \(the data has, for one, 00000000\)"),
    ],
)
def test_rows_that_the_data_lacks_are_refused_unless_told_otherwise(
    tmp_path: Path, text: str, key: str, absent: str
) -> None:
    with pytest.raises(
        DataError, match=rf"1 of 2 rows are of no {key} of the data, such as {absent}; .* --ignore-extra-tags"
    ):
        joined(tmp_path, text)
    assert [tags["g"] for tags in joined(tmp_path, text, ignore_extra=True)][:2] == ["f", "unknown"]


def test_a_key_listed_twice_must_say_the_same(tmp_path: Path) -> None:
    assert [one["g"] for one in joined(tmp_path, "identity,g\nann,f\n ann,f\ncy,m\n")] == ["f", "unknown", "f", "m"]
    with pytest.raises(DataError, match=r"identity ann is listed twice .* f in row 2 and m in row 4"):
        joined(tmp_path, "identity,g\nann,f\nbob,f\nann,m\n")


@pytest.mark.parametrize("row", ["ann", "ann,f,30", "ann,f,"])
def test_a_row_with_another_number_of_fields_is_refused(tmp_path: Path, row: str) -> None:
    with pytest.raises(DataError, match=r"Row #3: Expected 2 columns, got [13]: ann"):
        table(tmp_path, f"identity,gender\nbob,f\n{row}\n")


@pytest.mark.parametrize("at", [0, 200_000])
def test_a_table_in_another_encoding_is_refused(tmp_path: Path, at: int) -> None:
    before = "".join(f"id{number},x\n" for number in range(at))
    (tmp_path / "tags.csv").write_bytes(f"identity,city\n{before}ann,Orléans\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"tags\.csv is no CSV in UTF-8"):
        read_table(tmp_path / "tags.csv")


def test_a_column_with_too_many_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="number has more than 32767 values"):
        parquet(tmp_path, {"identity": [str(number) for number in range(40_000)], "number": range(40_000)})


def test_fairface_rows_give_age_gender_and_ethnicity(tmp_path: Path) -> None:
    rows = table(
        tmp_path,
        "file,age,gender,race,service_test\n"
        "train/1.jpg,50-59,Male,East Asian,True\ntrain/2.jpg,more than 70,Female,Latino_Hispanic,False\n",
    )
    names = ["train/2.jpg", "train/1.jpg"]
    assert values(join_table(rows, Records(lambda: names, (), np.full(2, -1, np.int32)))) == [
        {"age": "more than 70", "gender": "Female", "ethnicity": "Latino_Hispanic"},
        {"age": "50-59", "gender": "Male", "ethnicity": "East Asian"},
    ]


def test_maad_face_says_yes_no_or_nothing_about_47_attributes(tmp_path: Path) -> None:
    attributes = ["Male", "5_o_Clock_Shadow", *(f"Attribute_{number}" for number in range(45))]
    codes = {"ann/1.jpg": [1, -1, *[0] * 45], "bob/1.jpg": [-1, 0, *[1] * 45]}
    lines = [f"{name},n000001,{','.join(map(str, row))}\n" for name, row in codes.items()]
    rows = table(tmp_path, f"Filename,Identity,{','.join(attributes)}\n{''.join(lines)}")
    tags = join_table(rows, FACES)
    word = {1: "yes", -1: "no", 0: "unknown"}
    for record, name in enumerate(NAMES):
        expected = [word[code] for code in codes.get(name, [0] * 47)]
        assert tags.values_of(record) == dict(zip(attributes, expected, strict=True))
    assert tags.codes.shape == (4, 47)


def test_numbers_in_other_tables_stay_numbers(tmp_path: Path) -> None:
    assert [one["Male"] for one in joined(tmp_path, "Filename,Male\nann/1.jpg,1\nbob/1.jpg,-1\ncy/1.jpg,0\n")] == [
        "1",
        "-1",
        "unknown",
        "0",
    ]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["f", None, " m "], ["f", "unknown", "m"]),
        ([1, None, 30], ["1", "unknown", "30"]),
        ([1.0, float("nan"), 2.5], ["1", "unknown", "2.5"]),
        (pa.array([1.0, None, 2.0], pa.float32()), ["1", "unknown", "2"]),
        ([None, None, None], ["unknown"] * 3),
        ([True, False, None], ["True", "False", "unknown"]),
        (pa.array(["f", None, "f"]).dictionary_encode(), ["f", "unknown", "f"]),
        (pa.array(["f", "", "m"], pa.large_string()), ["f", "unknown", "m"]),
    ],
)
def test_a_parquet_column_of_any_plain_type_gives_texts(tmp_path: Path, column: Any, expected: list[str]) -> None:
    tags = join_table(parquet(tmp_path, {"identity": ["ann", "bob", "cy"], "g": column}), FACES)
    assert [one["g"] for one in values(tags)] == [expected[label] for label in FACES.labels]


@pytest.mark.parametrize(
    "keys", [[7, 8], [7.0, 8.0], ["7", "8 "], pa.array(["7", "8"]).dictionary_encode(), pa.array([7, 8], pa.uint8())]
)
def test_parquet_keys_of_any_plain_type_find_their_records(tmp_path: Path, keys: Any) -> None:
    tags = join_table(parquet(tmp_path, {"identity": keys, "g": ["f", "m"]}), NUMBERED)
    assert [one["g"] for one in values(tags)] == ["m", "f"]


NUMBERED = Records(lambda: ["a.jpg", "b.jpg"], ["7", "8"], np.array([1, 0], np.int32))


@pytest.mark.parametrize("column", [[b"a"], [["a"]], [{"bytes": "a"}]])
def test_a_parquet_column_that_holds_no_texts_is_refused(tmp_path: Path, column: Any) -> None:
    with pytest.raises(DataError, match=r"tags\.parquet .* column g holds"):
        parquet(tmp_path, {"identity": ["ann"], "g": column})
    with pytest.raises(DataError, match=r"tags\.parquet .* column identity holds"):
        parquet(tmp_path, {"identity": column, "g": ["f"]})


def test_keys_between_whole_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1\.5"):
        parquet(tmp_path, {"identity": [1.5], "g": ["f"]})


def test_what_is_called_parquet_and_is_not_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tags.parquet").write_text("identity,g\nann,f\n")
    with pytest.raises(DataError, match=r"tags\.parquet is no parquet file"):
        read_table(tmp_path / "tags.parquet")


fields = st.sampled_from(["", "unknown", "a", "b", "7", "70", "é", "x,y", 'q"r'])


@settings(deadline=None, max_examples=50)
@given(
    rows=st.dictionaries(st.integers(0, 5), st.tuples(fields, fields), min_size=1),
    labels=st.lists(st.integers(-1, 5), max_size=12),
)
def test_codes_say_what_the_rows_say_in_either_format(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[int, tuple[str, str]], labels: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    quoted = [",".join('"' + one.replace('"', '""') + '"' for one in (f"id{key}", *row)) for key, row in rows.items()]
    columns = {
        "identity": [f"id{key}" for key in rows],
        **dict(zip("xy", zip(*rows.values(), strict=True), strict=True)),
    }
    records = Records(tuple, [f"id{number}" for number in range(6)], np.array(labels, np.int32))
    expected = [rows.get(label, ("", "")) for label in labels]
    for listed in (table(folder, "identity,x,y\n" + "\n".join(quoted)), parquet(folder, columns)):
        tags = join_table(listed, records)
        assert values(tags) == [{"x": x or "unknown", "y": y or "unknown"} for x, y in expected]
        assert all(axis[0] == "unknown" and len(set(axis)) == len(axis) for axis in tags.axes.values())
