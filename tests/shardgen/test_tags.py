"""Tags: where they come from, that unknown stays unknown, and what cannot be joined."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardgen.errors import DataError, UsageError
from shardgen.tags import RESERVED_COLUMNS, Tags, TagTable, join_pattern, join_table, merge, no_tags, read_table

UTKFACE = r"(?P<age>[0-9]+)_(?P<gender>[01])_(?P<race>[0-4])_[0-9]+[.]"
NAMES = ["ann/1.jpg", "bob/1.jpg", "ann/2.jpg", "cy/1.jpg"]
IDENTITIES = ["ann", "bob", "cy"]
LABELS = np.array([0, 1, 0, 2], np.int32)


def table(tmp_path: Path, text: str) -> TagTable:
    path = tmp_path / "tags.csv"
    path.write_text(text, encoding="utf-8")
    return read_table(path)


def joined(tmp_path: Path, text: str, ignore_extra: bool = False) -> list[dict[str, str]]:
    return values(join_table(table(tmp_path, text), NAMES, IDENTITIES, LABELS, ignore_extra))


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
    assert joined(tmp_path, "path,pose\nann/2.jpg,left\ncy/1.jpg,right\n") == [
        {"pose": "unknown"},
        {"pose": "unknown"},
        {"pose": "left"},
        {"pose": "right"},
    ]


def test_what_no_row_or_an_empty_field_says_stays_unknown(tmp_path: Path) -> None:
    tags = joined(tmp_path, "identity,gender,age\nann,,30\nbob,unknown, \n")
    assert tags == [
        {"gender": "unknown", "age": "30"},
        {"gender": "unknown", "age": "unknown"},
        {"gender": "unknown", "age": "30"},
        {"gender": "unknown", "age": "unknown"},
    ]


def test_a_record_without_identity_is_unknown(tmp_path: Path) -> None:
    rows = table(tmp_path, "identity,gender\nann,f\nbob,m\ncy,x\n")
    tags = join_table(rows, NAMES, IDENTITIES, np.array([2, -1, 0, -1], np.int32))
    assert [value["gender"] for value in values(tags)] == ["x", "unknown", "f", "unknown"]


def test_blanks_quotes_and_a_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    plain = joined(tmp_path, "identity,gender\nann,f\nbob,m\n")
    assert joined(tmp_path, '\ufeff identity , gender\r\n"ann", f\r\n\r\nbob ,"m"\r\n') == plain


@pytest.mark.parametrize(
    ("listed", "ordered"),
    [
        (["9", "100", "30"], ["unknown", "9", "30", "100"]),
        (["0.5", "-2", "10"], ["unknown", "-2", "0.5", "10"]),
        (["9", "100", "old"], ["unknown", "100", "9", "old"]),
        (["9", "", "30"], ["unknown", "9", "30"]),
        (["unknown", "b", "a"], ["unknown", "a", "b"]),
    ],
)
def test_numbers_are_sorted_as_numbers_and_unknown_comes_first(
    tmp_path: Path, listed: list[str], ordered: list[str]
) -> None:
    rows = "".join(f"{identity},{value}\n" for identity, value in zip(IDENTITIES, listed, strict=True))
    tags = join_table(table(tmp_path, "identity,axis\n" + rows), NAMES, IDENTITIES, LABELS)
    assert list(tags.axes["axis"]) == ordered


fields = st.sampled_from(["", "unknown", "a", "b", "7", "70", "é"])


@settings(deadline=None)
@given(
    rows=st.dictionaries(st.integers(0, 5), st.tuples(fields, fields)),
    labels=st.lists(st.integers(-1, 5), max_size=12),
)
def test_codes_say_what_the_rows_say(rows: dict[int, tuple[str, str]], labels: list[int]) -> None:
    names = [f"id{number}" for number in range(6)]
    listed = TagTable(Path("tags.csv"), "identity", ["x", "y"], {names[number]: row for number, row in rows.items()})
    tags = join_table(listed, [], names, np.array(labels, np.int32))
    expected = [rows.get(label, ("", "")) for label in labels]
    assert values(tags) == [{"x": x or "unknown", "y": y or "unknown"} for x, y in expected]
    assert all(axis[0] == "unknown" and len(set(axis)) == len(axis) for axis in tags.axes.values())


@pytest.mark.parametrize("text", ["identity,g\nann,f\ndan,m\n", "path,g\nann/1.jpg,f\ndan/1.jpg,m\n"])
def test_rows_that_the_source_lacks_are_refused_unless_told_otherwise(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"1 of 2 rows .* dan.* --ignore-extra-tags"):
        joined(tmp_path, text)
    assert [tags["g"] for tags in joined(tmp_path, text, ignore_extra=True)][:2] == ["f", "unknown"]


def test_a_key_listed_twice_must_say_the_same(tmp_path: Path) -> None:
    assert joined(tmp_path, "identity,g\nann,f\nann,f\n")[0] == {"g": "f"}
    with pytest.raises(DataError, match=r"line 4: ann was listed before"):
        joined(tmp_path, "identity,g\nann,f\nbob,f\nann,m\n")


@pytest.mark.parametrize("row", ["ann", "ann,f,30", "ann,f,"])
def test_a_row_with_another_number_of_fields_is_refused(tmp_path: Path, row: str) -> None:
    with pytest.raises(DataError, match="line 2: "):
        table(tmp_path, f"identity,gender\n{row}\n")


@pytest.mark.parametrize("header", ["", "gender,age", "identity,path,gender", "Identity,gender"])
def test_a_table_needs_exactly_one_key_column(tmp_path: Path, header: str) -> None:
    with pytest.raises(UsageError, match="exactly one named identity or path"):
        table(tmp_path, header + "\n")


@pytest.mark.parametrize("axis", [*sorted(RESERVED_COLUMNS - {"identity"}), "", "age group", "age-group", "1st", "é"])
def test_a_name_that_a_column_cannot_have_is_refused(tmp_path: Path, axis: str) -> None:
    with pytest.raises(UsageError, match="cannot name a tag axis"):
        table(tmp_path, f"identity,{axis}\n")


@pytest.mark.parametrize("axis", sorted(RESERVED_COLUMNS))
def test_a_pattern_cannot_name_a_reserved_column(axis: str) -> None:
    with pytest.raises(UsageError, match="cannot name a tag axis"):
        join_pattern(f"(?P<{axis}>.)", NAMES)


def test_a_column_may_not_repeat(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="repeats"):
        table(tmp_path, "identity,age,age\n")


def test_a_table_without_any_tag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no column beside its key"):
        joined(tmp_path, "identity\nann\n")


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tags.csv").write_bytes("identity,city\nann,Orléans\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"tags\.csv"):
        read_table(tmp_path / "tags.csv")


def test_an_axis_with_too_many_values_is_refused() -> None:
    with pytest.raises(UsageError, match="40001 values"):
        join_pattern("(?P<number>[0-9]+)", map(str, range(40_000)))


def test_a_pattern_takes_its_groups_from_anywhere_in_the_path() -> None:
    tags = join_pattern(
        r"/(?P<group>[A-Z][a-z]+)/(?P<pose>left|right)?", ["x/Asian/left/1.jpg", "x/Indian/1.jpg", "1.jpg"]
    )
    assert values(tags) == [
        {"group": "Asian", "pose": "left"},
        {"group": "Indian", "pose": "unknown"},
        {"group": "unknown", "pose": "unknown"},
    ]


@pytest.mark.parametrize("pattern", ["(", "([0-9]+)", "", "(?P<a>.)(?P<a>.)"])
def test_a_pattern_must_compile_and_name_its_groups(pattern: str) -> None:
    with pytest.raises(UsageError, match="tag pattern"):
        join_pattern(pattern, NAMES)


def test_real_names_give_their_tags_and_malformed_ones_stay_unknown(real_faces: Path) -> None:
    names = sorted(path.name for path in (real_faces / "utkface" / "images").iterdir())
    tags = join_pattern(UTKFACE, names)
    of_name = dict(zip(names, values(tags), strict=True))
    malformed = ["61_1_20170109142408075.jpg.chip.jpg", "61_3_20170109150557335.jpg.chip.jpg"]
    for name, found in of_name.items():
        fields = ["unknown"] * 3 if name in malformed else name.split("_")[:3]
        assert found == dict(zip(("age", "gender", "race"), fields, strict=True)), name
    assert len(names) == 1502
    assert set(malformed) < of_name.keys()
    ages = [int(age) for age in tags.axes["age"][1:]]
    assert ages == sorted(ages)
    assert tags.axes["race"] == ["unknown", "0", "1", "2", "3", "4"]


def test_axes_of_two_origins_stand_side_by_side() -> None:
    names = ["a1", "b2"]
    tags = merge(merge(no_tags(2), join_pattern("(?P<letter>[a-z])", names)), join_pattern("(?P<number>[0-9])", names))
    assert values(tags) == [{"letter": "a", "number": "1"}, {"letter": "b", "number": "2"}]
    with pytest.raises(UsageError, match="letter"):
        merge(tags, join_pattern("(?P<letter>.)", names))


def test_a_part_of_the_tags_keeps_the_order_asked_for() -> None:
    tags = join_pattern("(?P<letter>[a-z])", ["a", "b", "c"])
    assert values(tags.part(np.array([2, 0]))) == [{"letter": "c"}, {"letter": "a"}]
