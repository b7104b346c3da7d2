"""Tags: read out of paths, combined with a stated precedence, and unknown where nobody knows."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardgen.errors import UsageError
from shardgen.manifest import TagSource
from shardgen.sample import sample_key
from shardgen.tags import (
    RESERVED_COLUMNS,
    Records,
    Tags,
    combine,
    join_folder,
    join_pattern,
    lines_of_sources,
    no_tags,
)

NAMES = ["ann/1.jpg", "bob/1.jpg", "ann/2.jpg", "cy/1.jpg"]
MALFORMED = ["61_1_20170109142408075.jpg.chip.jpg", "61_3_20170109150557335.jpg.chip.jpg"]


def records(names: Sequence[str]) -> Records:
    return Records(lambda: names, (), np.full(len(names), -1, np.int32))


def values(tags: Tags) -> list[dict[str, str]]:
    return [tags.values_of(record) for record in range(len(tags.codes))]


def said(*rows: Mapping[str, str]) -> Tags:
    """Write tags as a person would."""
    axes = {axis: ["unknown", *sorted({row[axis] for row in rows} - {"unknown"})] for axis in rows[0]}
    return Tags(axes, np.array([[axes[axis].index(row[axis]) for axis in axes] for row in rows], np.int16))


@pytest.mark.parametrize("axis", [*sorted(RESERVED_COLUMNS)])
def test_a_pattern_cannot_name_a_reserved_column(axis: str) -> None:
    with pytest.raises(UsageError, match="cannot name a tag axis"):
        join_pattern(f"(?P<{axis}>.)", NAMES)


def test_an_axis_with_too_many_values_is_refused() -> None:
    with pytest.raises(UsageError, match="number has more than 32767 values"):
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


@pytest.mark.parametrize(
    ("listed", "ordered"),
    [
        (["9", "100", "30"], ["9", "30", "100"]),
        (["0.5", "-2", "10"], ["-2", "0.5", "10"]),
        (["9", "100", "old"], ["100", "9", "old"]),
        (["9", "nan", "10"], ["10", "9", "nan"]),
        (["01", "1", "1.0"], ["01", "1", "1.0"]),
        (["b", "a"], ["a", "b"]),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_numbers_are_sorted_as_numbers_whatever_comes_first(
    listed: list[str], ordered: list[str], turned: bool
) -> None:
    tags = join_pattern("(?P<axis>.+)", listed[::-1] if turned else listed)
    assert tags.axes == {"axis": ["unknown", *ordered]}


def test_utkface_names_give_their_tags_and_two_malformed_ones_stay_unknown(real_faces: Path) -> None:
    names = sorted(path.name for path in (real_faces / "utkface" / "images").iterdir())
    tags, (source,) = combine([("names", join_pattern("utkface", names))], records(names))
    assert (len(names), source.num_tagged, source.num_unknown) == (1502, 1500, 2)
    assert source.unknown_examples == MALFORMED
    genders = ["Male", "Female"]
    ethnicities = ["White", "Black", "Asian", "Indian", "Other"]
    for name, found in zip(names, values(tags), strict=True):
        if name in MALFORMED:
            assert set(found.values()) == {"unknown"}
        else:
            age, gender, race = name.split("_")[:3]
            assert found == {"age": age, "gender": genders[int(gender)], "ethnicity": ethnicities[int(race)]}
    ages = [int(age) for age in tags.axes["age"][1:]]
    assert ages == sorted(ages)


@pytest.mark.parametrize("name", ["a/b/26_1_2_20170116.jpg", "26_1_2_20170116174525125.jpg.chip.jpg"])
def test_utkface_names_are_found_in_any_folder(name: str) -> None:
    assert values(join_pattern("utkface", [name])) == [{"age": "26", "gender": "Female", "ethnicity": "Asian"}]


@pytest.mark.parametrize("name", ["26_2_2_2017.jpg", "26_1_5_2017.jpg", "x26_1_2_2017.jpg", "26_1_2_2017.jpg/1.jpg"])
def test_what_is_no_utkface_name_stays_unknown(name: str) -> None:
    assert set(values(join_pattern("utkface", [name]))[0].values()) == {"unknown"}


def test_folders_of_bupt_give_the_ethnicity() -> None:
    names = ["African/m.0abc/1.jpg", "Asian/m.0b/2.jpg", "loose.jpg"]
    assert values(join_folder("ethnicity", names)) == [
        {"ethnicity": "African"},
        {"ethnicity": "Asian"},
        {"ethnicity": "unknown"},
    ]
    assert values(join_folder("person=2", names)) == [{"person": "m.0abc"}, {"person": "m.0b"}, {"person": "unknown"}]


@pytest.mark.parametrize("asked", ["", "origin", "a b", "=1", "ethnicity=0", "ethnicity=top", "ethnicity=-1"])
def test_a_tag_folder_needs_an_axis_and_a_level(asked: str) -> None:
    with pytest.raises(UsageError, match="tag folder"):
        join_folder(asked, NAMES)


def test_a_part_of_the_tags_keeps_the_order_asked_for() -> None:
    tags = join_pattern("(?P<letter>[a-z])", ["a", "b", "c"])
    assert values(tags.part(np.array([2, 0]))) == [{"letter": "c"}, {"letter": "a"}]


def test_records_of_a_conversion_have_its_keys() -> None:
    assert list(records(NAMES).keys()) == [sample_key(position) for position in range(4)]


def test_no_source_gives_no_axis() -> None:
    tags, sources = combine([], records(NAMES))
    assert values(tags) == [{}, {}, {}, {}]
    assert sources == []


def test_the_first_source_is_believed_and_others_fill_what_it_does_not_know() -> None:
    first = said({"age": "9"}, {"age": "unknown"}, {"age": "unknown"})
    second = said({"age": "10", "pose": "left"}, {"age": "100", "pose": "unknown"}, {"age": "unknown", "pose": "left"})
    tags, sources = combine([("x.csv", first), ("names", second)], records(["a/1.jpg", "a/2.jpg", "b/1.jpg"]))
    assert values(tags) == [
        {"age": "9", "pose": "left"},
        {"age": "100", "pose": "unknown"},
        {"age": "unknown", "pose": "left"},
    ]
    assert tags.axes["age"] == ["unknown", "9", "100"]
    assert sources == [
        TagSource(
            name="x.csv",
            axes=["age"],
            num_tagged=1,
            num_unknown=2,
            unknown_examples=["a/2.jpg", "b/1.jpg"],
            conflicts={},
            conflict_examples=[],
        ),
        TagSource(
            name="names",
            axes=["age", "pose"],
            num_tagged=3,
            num_unknown=0,
            unknown_examples=[],
            conflicts={"age": 1},
            conflict_examples=["a/1.jpg: age is 9 by x.csv, 10 by names"],
        ),
    ]


def test_a_conflict_names_the_source_that_was_believed() -> None:
    sources = [(name, said({"g": one}, {"g": two})) for name, one, two in ABOUT_TWO]
    _, reports = combine(sources, records(["1.jpg", "2.jpg"]))
    assert [one.conflict_examples for one in reports] == [
        [],
        ["1.jpg: g is f by labels.csv, m by labels.csv"],
        ["1.jpg: g is f by labels.csv, x by names", "2.jpg: g is m by labels.csv, x by names"],
    ]


ABOUT_TWO = [("labels.csv", "f", "unknown"), ("labels.csv", "m", "m"), ("names", "x", "x")]


def test_a_person_reads_counts_and_the_first_few_names() -> None:
    names = [f"{number}.jpg" for number in range(8)]
    first = said(*[{"g": "f"}] * 7, {"g": "unknown"})
    second = said(*[{"g": "m"}] * 6, *[{"g": "unknown"}] * 2)
    _, sources = combine([("x.csv", first), ("names", second), ("none", said(*[{"g": "unknown"}] * 8))], records(names))
    assert lines_of_sources(sources) == [
        "  tags by x.csv: g; 7 tagged, 1 unknown",
        "    unknown: 7.jpg",
        "  tags by names: g; 6 tagged, 2 unknown",
        "    unknown: 6.jpg, 7.jpg",
        "    not believed, as a source before it says otherwise: g 6",
        *(f"      {number}.jpg: g is f by x.csv, m by names" for number in range(5)),
        "  tags by none: g; 0 tagged, 8 unknown",
        "    unknown: 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 3 more",
    ]


def test_names_are_made_only_as_far_as_examples_need_them() -> None:
    def names() -> Iterator[str]:
        yield from ("0.jpg", "1.jpg")
        raise AssertionError("the third name is no example")

    two_unknown = said({"g": "f"}, {"g": "unknown"}, {"g": "m"})
    _, (source,) = combine([("x", two_unknown)], Records(names, (), np.zeros(3, np.int32)))
    assert source.unknown_examples == ["1.jpg"]


one_row = st.sampled_from(["unknown", "a", "b", "7", "70"])


@settings(deadline=None)
@given(st.integers(0, 6).flatmap(lambda n: st.lists(st.lists(one_row, min_size=n, max_size=n), min_size=1, max_size=4)))
def test_combining_is_the_first_known_value_of_each_record(columns: list[list[str]]) -> None:
    num_records = len(columns[0])
    sources = [(str(number), join_pattern("(?P<g>.+)", column)) for number, column in enumerate(columns)]
    tags, reports = combine(sources, records(["name"] * num_records))
    known = [[value for value in row if value != "unknown"] for row in zip(*columns, strict=True)]
    assert [row["g"] for row in values(tags)] == [row[0] if row else "unknown" for row in known]
    assert set(tags.axes["g"]) == {"unknown", *(row[0] for row in known if row)}
    for number, report in enumerate(reports):
        first = [
            next((one for one in row[:number] if one != "unknown"), "unknown") for row in zip(*columns, strict=True)
        ]
        disputed = [a != b and "unknown" not in (a, b) for a, b in zip(first, columns[number], strict=True)]
        assert report.conflicts.get("g", 0) == sum(disputed)
        assert len(report.conflict_examples) == min(5, sum(disputed))
        assert report.num_unknown == columns[number].count("unknown")


def test_a_fingerprint_changes_with_codes_values_and_names() -> None:
    tags = said({"g": "f"}, {"g": "m"})
    others = [said({"g": "m"}, {"g": "f"}), said({"g": "f"}, {"g": "n"}), said({"h": "f"}, {"h": "m"}), no_tags(2)]
    assert tags.fingerprint() == said({"g": "f"}, {"g": "m"}).fingerprint()
    assert len({one.fingerprint() for one in [tags, *others]}) == 5
