"""What all sources share: identities from names, and what is refused of a record without one."""

from pathlib import Path

import numpy as np
import pytest

from shardgen.errors import DataError, UsageError
from shardgen.images import Unreadable
from shardgen.inputs.folders import open_folder
from shardgen.sources import Source, identify, identity_name, number_identities


@pytest.fixture
def flat(tmp_path: Path) -> Source:
    for name in ("0001_a.jpg", "0001_b.jpg", "0002_a.jpg", "cover.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    return open_folder(tmp_path)


@pytest.mark.parametrize("pattern", ["([0-9]+)_", "(?:x|)(?P<other>.)?(?P<identity>[0-9]{4})_"])
def test_an_identity_pattern_finds_people_in_flat_names(flat: Source, pattern: str) -> None:
    found = identify(flat, pattern)
    assert (found.identities, found.labels.tolist()) in [(["0001", "0002"], [0, 0, 1, -1])]
    assert [found.read(record) for record in range(3)] == [b"0001_a.jpg", b"0001_b.jpg", b"0002_a.jpg"]


def test_a_record_without_an_identity_is_unreadable_in_a_part_too(flat: Source) -> None:
    found = identify(flat, "([0-9]+)_")
    for source, record in ((found, 3), (found.part(np.array([3])), 0)):
        assert source.image(record) == b"cover.jpg"
        with pytest.raises(Unreadable, match="no identity: the pattern finds none in its name"):
            source.read(record)


def test_another_pattern_is_another_input(flat: Source) -> None:
    prints = [identify(flat, pattern).fingerprint() for pattern in ("([0-9]+)_", "^([0-9]+)_", "_([ab])")]
    assert prints[0] == prints[1] != prints[2]
    assert flat.fingerprint() not in prints


def test_an_empty_group_is_no_identity(flat: Source) -> None:
    assert identify(flat, "^([0-9]*)").labels.tolist() == [0, 0, 1, -1]
    assert identify(flat, "^(cover)?").labels.tolist() == [-1, -1, -1, 0]


@pytest.mark.parametrize("pattern", ["(", "[0-9]+", "(?:[0-9]+)"])
def test_a_pattern_that_finds_nobody_is_wrong_use(flat: Source, pattern: str) -> None:
    with pytest.raises(UsageError, match="identity pattern"):
        identify(flat, pattern)


def test_a_pattern_that_no_name_matches_shows_one_that_it_should(flat: Source) -> None:
    with pytest.raises(DataError, match=r"matches none of 4 names, such as '0001_a\.jpg'"):
        identify(flat, "id([0-9]+)")


@pytest.mark.parametrize(
    ("value", "name"),
    [("ann", "ann"), ("0", "0"), (0, "0"), (7, "7"), (7.0, "7"), (2**63, str(2**63))]
    + [(value, None) for value in ("", None, -1, 0.5, True, float("nan"), float("inf"), [1], {"a": 1}, b"ann")],
)
def test_text_and_whole_numbers_name_an_identity(value: object, name: str | None) -> None:
    assert identity_name(value) == name


def test_identities_are_numbered_as_they_come() -> None:
    names, labels = number_identities(iter(["b", None, "a", "b"]))
    assert (names, labels.tolist()) == (["b", "a"], [0, -1, 1, 0])
