"""Several inputs as one: names below their input's, people kept apart, tags united."""

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardgen.errors import DataError
from shardgen.inputs import open_source
from shardgen.inputs.joined import _ranks, join
from shardgen.inputs.tagged import tags_of_rows, unite
from shardgen.sources import Source, identify
from shardgen.tags import Tags
from tests.shardgen.inputs.made import FACES, WRITERS, at_once, contents, one_by_one, write_folder, write_tar

MORE = {"bob/9.jpg": b"nine", "eve/8.jpg": b"eight"}


@pytest.fixture
def two(tmp_path: Path) -> list[tuple[str, Source]]:
    return [
        (name, open_source("folder", write_folder(tmp_path / name, files)))
        for name, files in (("real", FACES), ("made", MORE))
    ]


def people(source: Source) -> list[str | None]:
    return [identity for _, identity, _ in contents(source)]


def test_a_single_input_stays_as_it_is(two: list[tuple[str, Source]]) -> None:
    assert join(two[:1]) is two[0][1]


def test_the_same_name_in_two_inputs_is_two_people(
    two: list[tuple[str, Source]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "facemix.shard")
    joined = join(two)
    assert list(joined.names()) == [f"real/{name}" for name in FACES] + [f"made/{name}" for name in MORE]
    assert people(joined) == ["ann", "ann", "real/bob", "bob/c", "made/bob", "eve"]
    assert [joined.read(record) for record in range(6)] == [*FACES.values(), *MORE.values()]
    assert caplog.messages == ["1 identity names are in several inputs, such as bob: kept apart, as real/bob"]


def test_inputs_may_share_their_people(two: list[tuple[str, Source]]) -> None:
    assert people(join(two, identities="joined")) == ["ann", "ann", "bob", "bob/c", "bob", "eve"]


def test_inputs_of_one_name_are_numbered(two: list[tuple[str, Source]]) -> None:
    joined = join([("a", two[0][1]), ("a", two[1][1]), ("a-2", two[1][1])])
    assert sorted({name.partition("/")[0] for name in joined.names()}) == ["a", "a-2", "a-2-2"]
    assert people(joined)[-2:] == ["a-2-2/bob", "a-2-2/eve"]


def test_an_identity_that_only_looks_like_a_kept_apart_one_is_refused(
    two: list[tuple[str, Source]], tmp_path: Path
) -> None:
    third = open_source("folder", write_folder(tmp_path / "third", {"made/bob/1.jpg": b""}))
    with pytest.raises(DataError, match="rename one of the inputs"):
        join([*two, ("third", third)])


def test_a_part_holds_just_its_records_and_their_inputs(two: list[tuple[str, Source]]) -> None:
    joined = join(two)
    part = pickle.loads(pickle.dumps(joined.part(np.array([5, 1, 4, 0]))))
    names = list(joined.names())
    assert list(part.names()) == [names[record] for record in (5, 1, 4, 0)]
    assert [part.read(record) for record in range(4)] == [joined.read(record) for record in (5, 1, 4, 0)]
    last = part.part(np.array([2, 0]))
    assert list(last.names()) == [names[4], names[5]]
    assert len(pickle.dumps(last)) < len(pickle.dumps(part))


def test_every_kind_of_input_joins(tmp_path: Path) -> None:
    joined = join([(kind, open_source("auto", write(tmp_path / kind, FACES))) for kind, write in WRITERS.items()])
    assert list(joined.names()) == [f"{kind}/{name}" for kind in WRITERS for name in FACES]
    assert len(set(people(joined))) == 3 * len(WRITERS)
    order = np.random.default_rng(0).permutation(len(joined))
    part = pickle.loads(pickle.dumps(joined.part(order)))
    assert [part.read(record) for record in range(len(order))] == [joined.read(record) for record in order]
    assert at_once(part) == one_by_one(part)


def test_a_record_without_an_identity_has_none_among_others(two: list[tuple[str, Source]]) -> None:
    joined = join([("real", identify(two[0][1], "(ann)")), two[1]])
    assert people(joined) == ["ann", "ann", None, None, "bob", "eve"]
    assert people(identify(joined, "real/(b[^/]*)")) == [None, None, "bob", "bob", None, None]


def test_what_an_input_lacks_is_said_of_the_whole(two: list[tuple[str, Source]]) -> None:
    joined = join([("real", identify(two[0][1], "(ann)")), two[1]])
    lacking, others = "no identity: its input does not say whose it is", [*FACES.values(), *MORE.values()]
    assert at_once(joined) == one_by_one(joined) == [*others[:2], lacking, lacking, *others[4:]]
    found = identify(joined, "/(b[^/]*)")
    lacking = "no identity: the pattern finds none in its name"
    assert at_once(found) == one_by_one(found) == [lacking, lacking, *others[2:5], lacking]


def test_fingerprint_and_stamp_are_those_of_all_inputs(two: list[tuple[str, Source]], tmp_path: Path) -> None:
    joined = join(two)
    assert join(two).fingerprint() == joined.fingerprint() != join(two[::-1]).fingerprint()
    prints = joined.fingerprint(), joined.stamp()
    (tmp_path / "made" / "eve" / "8.jpg").write_bytes(b"longer than eight")
    assert joined.stamp() != prints[1]
    assert join([two[0], ("made", open_source("folder", tmp_path / "made"))]).fingerprint() != prints[0]


def test_files_that_stay_out_are_reported_for_all(two: list[tuple[str, Source]], tmp_path: Path) -> None:
    write_folder(tmp_path / "made", {"notes.txt": b""})
    joined = join([two[0], ("made", open_source("folder", tmp_path / "made"))])
    assert joined.ignored == ["made/notes.txt"]


def test_tags_are_united_and_unknown_where_an_input_has_none(two: list[tuple[str, Source]], tmp_path: Path) -> None:
    files = {"a/1.jpg": b"", "a/1.json": b'{"tags": {"age": "30"}}'}
    tagged = open_source("auto", write_tar(tmp_path / "a.tar", files))
    tags = join([two[1], ("tagged", tagged)]).tags
    assert tags is not None
    assert tags.axes == {"age": ["unknown", "30"]}
    assert tags.codes.tolist() == [[0], [0], [1]]
    assert join(two).tags is None


ROWS = st.lists(st.dictionaries(st.sampled_from(["age", "race"]), st.sampled_from(["unknown", "1", "2", "10", "x"])))


@given(st.lists(ROWS, min_size=1, max_size=4))
def test_united_tags_say_of_each_record_what_its_input_said(inputs: list[list[dict[str, str]]]) -> None:
    parts: list[tuple[Tags | None, int]] = [
        (tags_of_rows([tuple(sorted(row.items())) for row in rows], Path("a.tar")), len(rows)) for rows in inputs
    ]
    rows = [row for one in inputs for row in one]
    tags = unite(parts)
    said = [tags.values_of(record) if tags else {} for record in range(len(rows))]
    assert [{axis: value for axis, value in row.items() if value != "unknown"} for row in said] == [
        {axis: value for axis, value in row.items() if value != "unknown"} for row in rows
    ]
    for values in tags.axes.values() if tags else ():
        assert values[0] == "unknown"
        assert len(set(values)) == len(values)


@given(st.lists(st.integers(0, 3)))
def test_ranks_count_equals_before(numbers: list[int]) -> None:
    ranks = _ranks(np.array(numbers, np.int32))
    assert ranks.tolist() == [numbers[:at].count(number) for at, number in enumerate(numbers)]
