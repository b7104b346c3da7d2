"""Lists of pairs of faces, and folds that share no identity."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.faces import Faces
from eval.pairs import FacePairs, disjoint_folds, read_pairs
from eval.verification import accuracy
from shardgen.errors import DataError, UsageError
from shardgen.pairs import draw_pairs
from shardgen.shardset import ShardSet
from tests.support import make_set

NAMES = ("Ann_Lee", "Bo", "Cy")
SOURCES = [f"lfw/{name}/{name}_{number:04d}.jpg" for name in NAMES for number in range(1, 5)]


def faces_like(identities: list[int]) -> Faces:
    numbers = np.array(identities, np.int64)
    names = tuple(f"name {number}" for number in range(max(identities) + 1))
    keys = tuple(f"{row:08x}" for row in range(len(numbers)))
    return Faces(np.ones((len(numbers), 1), np.float32), numbers, names, keys, {})


FACES = faces_like([0] * 4 + [1] * 4 + [2] * 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pairs.csv"


@pytest.mark.parametrize("names", [list(FACES.keys), SOURCES])
def test_pairs_are_listed_by_key_or_by_source(names: list[str], path: Path) -> None:
    path.write_text(f"second,first,note\n{names[1]},{names[0]},x\n {names[11]} ,{names[4]},y\n")
    found = read_pairs(path, FACES, SOURCES)
    assert found.rows.tolist() == [[0, 1], [4, 11]]
    assert found.same.tolist() == [True, False]
    assert found.folds is None


def test_answers_and_folds_may_be_listed_too(path: Path) -> None:
    key = FACES.keys
    path.write_text(
        "\ufefffirst,second,same,fold\n"
        f"{key[0]},{key[1]},TRUE,b\n{key[0]},{key[5]},0,a\n{key[0]},{key[2]},,b\n{key[0]},{key[6]},false,a\n",
        "utf-8",
    )
    found = read_pairs(path, FACES)
    assert found.same.tolist() == [True, False, True, False]
    assert found.folds is not None
    assert found.folds.tolist() == [1, 0, 1, 0]


def lfw(*lines: str) -> str:
    return "\n".join([line.replace(" ", "\t") for line in lines]) + "\n"


def test_pairs_are_listed_as_lfw_has_them(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(lfw("2 1", "Ann_Lee 1 4", "Ann_Lee 2 Bo 3", "Bo 1 2", "Bo 4 Cy 1"))
    found = read_pairs(path, FACES, SOURCES)
    assert found.rows.tolist() == [[0, 3], [1, 6], [4, 5], [7, 8]]
    assert found.same.tolist() == [True, False, True, False]
    assert found.folds is not None
    assert found.folds.tolist() == [0, 0, 1, 1]
    path.write_text(lfw("2", "Ann_Lee 1 4", "Bo 1 2", "Ann_Lee 2 Bo 3", "Bo 4 Cy 1"))  # its development sets
    assert read_pairs(path, FACES, SOURCES).folds is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["ten 300", "Bo 1 2"], "its first line is 'ten 300'; LFW's is"),
        (["1 1 1", "Bo 1 2"], "its first line is '1 1 1'; LFW's is"),
        (["1 1", "Bo 1"], "line 2: 'Bo 1' is neither NAME 1 2 nor"),
        (["1 1", "Bo 1 2", "Bo 1 Cy x"], "line 3: 'Bo 1 Cy x' is neither"),
        (["1 1", "Bo 1 2", "Bo 1 Dee 2"], "line 3: 'Dee/Dee_0002' is no source of a face"),
        (["1 1", "Bo 1 2", "Bo 1 Bo 2"], "line 3: .* are of one identity, the list says they are not"),
    ],
)
def test_a_list_that_is_not_lfws_is_refused(lines: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(lfw(*lines))
    with pytest.raises(DataError, match=message):
        read_pairs(path, FACES, SOURCES)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("00000000,zz", r"pairs.csv line 3: 'zz' is no key of a face; correct the name"),
        ("00000000,", "line 3: '' is no key"),
        ("00000003,00000003", "line 3: 00000003 is compared with itself"),
        ("00000000,00000001,0", "line 3: .* are of one identity, the list says they are not; correct"),
        ("00000000,00000004,1", "line 3: .* are not of one identity, the list says they are; correct"),
        ("00000000,00000004,maybe", "line 3: same is 'maybe'"),
        ("00000000,00000005", "lists 0 genuine of 2 pairs"),
    ],
)
def test_bad_lines_are_named(line: str, message: str, path: Path) -> None:
    path.write_text(f"first,second,same\n00000000,00000004\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_pairs(path, FACES)


def test_a_name_of_two_faces_is_refused(path: Path) -> None:
    path.write_text("first,second\na.jpg,b.jpg\n")
    with pytest.raises(DataError, match=r"two faces have the source b\.jpg; list the pairs by key"):
        read_pairs(path, FACES, ["a.jpg", *["b.jpg"] * 11])


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, UsageError, "No such file"),
        (b"one,two\n1,2\n", UsageError, "columns one, two lack first or second"),
        (b"first,second\n", DataError, "lists no pair"),
        (b"", DataError, "lists no pair"),
        (b"first,second\n\xff,1\n", DataError, "no text in UTF-8"),
    ],
)
def test_what_is_no_list_is_refused(content: bytes | None, error: type[ValueError], message: str, path: Path) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message):
        read_pairs(path, FACES)


def test_what_a_shard_set_exports_is_read_and_its_folds_are_found(tmp_path: Path) -> None:
    shards = ShardSet(make_set(tmp_path / "set", range(40), 3, tagged=False))
    table = shards.table(["key", "source", "identity"])
    faces = faces_like(table["identity"].to_pylist())
    drawn = draw_pairs(shards, 120)
    sources = table["source"].to_pylist()
    path = tmp_path / "pairs.csv"
    path.write_text("first,second\n" + "".join(f"{sources[one]},{sources[two]}\n" for one, two in drawn.rows))
    listed = read_pairs(path, faces, sources)
    assert listed.rows.tolist() == drawn.rows.tolist()
    found = disjoint_folds(listed, faces)
    assert found.num_dropped == 0
    assert np.bincount(checked(found, faces)).tolist() == [12] * 10


def checked(pairs: FacePairs, faces: Faces) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the folds, when no identity is in two of them."""
    assert pairs.folds is not None
    fold_of: dict[int, int] = {}
    for row, fold in zip(pairs.rows, pairs.folds.tolist(), strict=True):
        for identity in faces.identities[row].tolist():
            assert fold_of.setdefault(identity, fold) == fold
    return pairs.folds


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), num_folds=st.integers(2, 10), reach=st.sampled_from([1, 5, 100]))
def test_no_identity_is_in_two_folds_and_no_genuine_pair_is_lost(seed: int, num_folds: int, reach: int) -> None:
    rng = np.random.default_rng(seed)
    faces = faces_like(np.repeat(np.arange(100), 3).tolist())
    first = rng.integers(0, 300, 4000)
    second = (first + rng.integers(0, 3 * reach, 4000)) % 300
    rows = np.stack([first, second], axis=1)
    pairs = FacePairs(rows, faces.identities[first] == faces.identities[second], None)
    found = disjoint_folds(pairs, faces, num_folds)
    folds = checked(found, faces)
    assert sorted(set(folds.tolist())) == list(range(num_folds))
    assert found.same.sum() == pairs.same.sum()
    assert len(found.rows) + found.num_dropped == 4000
    assert (found.same == (faces.identities[found.rows[:, 0]] == faces.identities[found.rows[:, 1]])).all()
    assert accuracy(rng.uniform(0, 4, len(folds)), found.same, folds).num_pairs == len(folds)


def test_clusters_that_fit_into_a_fold_keep_all_their_pairs() -> None:
    faces = faces_like(list(range(20)) * 2)
    rows = np.array([[row, other] for row in range(20) for other in (20 + row, 20 + (row ^ 1))])
    found = disjoint_folds(FacePairs(rows, rows[:, 0] % 20 == rows[:, 1] % 20, None), faces, 5)
    assert found.num_dropped == 0
    assert np.bincount(checked(found, faces)).tolist() == [8] * 5


def test_too_few_identities_for_the_folds_are_refused() -> None:
    rows = np.array([[0, 1], [4, 5], [8, 9], [0, 4]])
    pairs = FacePairs(rows, np.array([True, True, True, False]), None)
    with pytest.raises(DataError, match="3 identities are too few for 10 folds that share none"):
        disjoint_folds(pairs, FACES)
