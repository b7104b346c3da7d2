"""Pairs: halves in every fold, nothing compared twice, folds that know nothing of each other."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.protocols import read_bin
from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.errors import DataError, UsageError
from shardgen.export import export_bin
from shardgen.inputs.records import open_recordio
from shardgen.pairs import NUM_FOLDS, Pairs, draw_pairs, read_pairs
from shardgen.recordio import write_insightface
from shardgen.shardset import ShardSet
from shardgen.tags import Tags

GROUPS = ["unknown", "x", "y"]


def tiny(number: int) -> bytes:
    """Return a small image, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    return bytes(cv2.imencode(".png", pixels)[1])


def set_of(out: Path, images_of_identity: Sequence[int], groups: Sequence[int] | None = None) -> Path:
    """Make a set whose identities have so many images, and groups (else all are of one)."""
    raw = out.with_name(out.name + ".raw")
    number = iter(range(10_000))
    write_insightface(raw, [[tiny(next(number)) for _ in range(images)] for images in images_of_identity])
    source = open_recordio(raw)
    group_of = np.array(groups or [1] * len(images_of_identity), np.int16)
    convert(
        source,
        Tags({"group": GROUPS}, group_of[source.labels][:, None]),
        out,
        ShardConfig(name="set", origin="authentic"),
    )
    return out


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty identities with four images each in two groups, every third one unknown; never change it."""
    return set_of(tmp_path_factory.mktemp("large") / "set", [4] * 60, [identity % 3 for identity in range(60)])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five identities with one to five images: 20 genuine pairs, 85 impostor pairs; never change it."""
    return set_of(tmp_path_factory.mktemp("small") / "set", [1, 2, 3, 4, 5])


def identities_of(folder: Path, pairs: Pairs) -> np.ndarray:
    identities: np.ndarray = ShardSet(folder).table(["identity"])["identity"].to_numpy()[pairs.rows]
    return identities


def check_pairs(folder: Path, pairs: Pairs, num_pairs: int) -> None:
    """What holds for all drawn pairs."""
    identities = identities_of(folder, pairs)
    assert pairs.rows.shape == (num_pairs, 2)
    assert pairs.same.tolist() == (identities[:, 0] == identities[:, 1]).tolist()
    assert (pairs.rows[:, 0] != pairs.rows[:, 1]).all()
    assert len(set(map(frozenset, pairs.rows.tolist()))) == num_pairs
    half = num_pairs // NUM_FOLDS // 2
    assert pairs.same.tolist() == ([True] * half + [False] * half) * NUM_FOLDS


@pytest.mark.parametrize("within", [None, "group"])
@pytest.mark.parametrize("num_pairs", [20, 200])
def test_folds_of_drawn_pairs_are_balanced_and_share_no_identity(
    large: Path, num_pairs: int, within: str | None
) -> None:
    pairs = draw_pairs(ShardSet(large), num_pairs, seed=3, within=within)
    check_pairs(large, pairs, num_pairs)
    folds = [set(fold.ravel().tolist()) for fold in np.split(identities_of(large, pairs), NUM_FOLDS)]
    assert sum(map(len, folds)) == len(set.union(*folds))
    assert "folds share no identity" in pairs.note


def test_impostors_within_an_axis_are_of_one_known_group(large: Path) -> None:
    pairs = draw_pairs(ShardSet(large), 200, within="group")
    groups = ShardSet(large).table(["group"])["group"].to_numpy()[pairs.rows[~pairs.same]]
    assert (groups[:, 0] == groups[:, 1]).all()
    assert set(groups.ravel().tolist()) == {1, 2}
    anywhere = draw_pairs(ShardSet(large), 200)
    groups = ShardSet(large).table(["group"])["group"].to_numpy()[anywhere.rows[~anywhere.same]]
    assert (groups[:, 0] != groups[:, 1]).any()


def test_the_seed_decides_the_pairs(large: Path) -> None:
    rows = [draw_pairs(ShardSet(large), 100, seed).rows.tolist() for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


def test_too_few_identities_share_the_folds_and_that_is_said(small: Path) -> None:
    pairs = draw_pairs(ShardSet(small), 40)
    check_pairs(small, pairs, 40)  # every genuine pair there is
    assert "folds share identities, 5 are too few to keep them apart" in pairs.note


def test_all_the_impostors_there_are_can_be_drawn(tmp_path: Path) -> None:
    pairs = draw_pairs(ShardSet(set_of(tmp_path / "set", [5, 2])), 20)
    check_pairs(tmp_path / "set", pairs, 20)  # 10 of 11 genuine pairs, all 10 impostors


def test_more_pairs_than_there_are_is_refused_and_the_number_offered_is_accepted(small: Path) -> None:
    with pytest.raises(DataError, match=r"too few images for 60 distinct pairs; ask for at most \d+") as refused:
        draw_pairs(ShardSet(small), 60)
    offered = int(re.findall(r"\d+$", str(refused.value))[0])
    assert offered == 40
    check_pairs(small, draw_pairs(ShardSet(small), offered), offered)


def test_no_identity_outweighs_the_others(tmp_path: Path) -> None:
    folder = set_of(tmp_path / "set", [30] + [3] * 99)
    pairs = draw_pairs(ShardSet(folder), 200)
    counts = Counter(identities_of(folder, pairs)[pairs.same][:, 0].tolist())
    assert max(counts.values()) == 1
    first_in_impostors = (identities_of(folder, pairs)[~pairs.same] == 0).sum()
    assert first_in_impostors < 15  # 2 expected, 19 if images were drawn and not identities


@pytest.mark.parametrize("num_pairs", [0, 10, 30, -20])
def test_a_number_that_ten_folds_cannot_halve_is_refused(small: Path, num_pairs: int) -> None:
    with pytest.raises(UsageError, match="multiple of 20, such as 20"):
        draw_pairs(ShardSet(small), num_pairs)


def test_an_axis_that_is_not_there_is_refused(small: Path) -> None:
    with pytest.raises(UsageError, match="no tag axis 'age' to draw impostors within; it has group"):
        draw_pairs(ShardSet(small), 20, within="age")


def names_of(folder: Path, column: str) -> list[str]:
    """Return keys or sources by identity and key."""
    table = ShardSet(folder).table()
    names: list[str] = table.sort_by([("identity", "ascending"), ("key", "ascending")])[column].to_pylist()
    return names


def write_list(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize("column", ["key", "source"])
@pytest.mark.parametrize("answers", [["", ""], ["1", "0"], ["TRUE", "false"], ["", "0"]])
def test_listed_pairs_are_taken_in_their_order(small: Path, tmp_path: Path, column: str, answers: list[str]) -> None:
    names = names_of(small, column)  # identity 0 has the first, identity 1 the next two
    path = write_list(
        tmp_path / "pairs.csv",
        "comment,second,first,same",
        f"x,{names[2]}, {names[1]},{answers[0]}",
        f"y,{names[0]},{names[1]},{answers[1]}",
    )
    pairs = read_pairs(ShardSet(small), path)
    found = np.array(ShardSet(small).table([column])[column].to_pylist())[pairs.rows]
    assert found.tolist() == [[names[1], names[2]], [names[1], names[0]]]
    assert pairs.same.tolist() == [True, False]


def test_answers_can_be_left_out(small: Path, tmp_path: Path) -> None:
    names = names_of(small, "key")
    path = write_list(tmp_path / "pairs.csv", "first,second", f"{names[1]},{names[2]}", f"{names[0]},{names[3]}")
    assert read_pairs(ShardSet(small), path).same.tolist() == [True, False]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["first,second,same", "K0,K1,1"], "line 2: K0 and K1 are not of one identity, same says 1"),
        (["first,second,same", "K0,K1,0", "K1,K2,0"], "line 3: K1 and K2 are of one identity, same says 0"),
        (["first,second,same", "K0,K1,yes"], "line 2: same is 'yes'"),
        (["first,second", "K0,nobody"], "line 2: 'nobody' is no key of a sample"),
        (["first,second", "nobody,K0"], "line 2: 'nobody' is no source of a sample"),
        (["first,second", "K0"], "line 2: '' is no key of a sample"),
        (["first,second", "K0,K0"], "line 2: K0 is compared with itself"),
        (["first,second"], "lists no pair"),
    ],
)
def test_a_wrong_row_is_named(small: Path, tmp_path: Path, lines: list[str], reason: str) -> None:
    names = names_of(small, "key")

    def filled(text: str) -> str:
        return re.sub(r"K(\d)", lambda match: names[int(match[1])], text)

    path = write_list(tmp_path / "pairs.csv", *map(filled, lines))
    with pytest.raises(DataError, match=re.escape(filled(reason))):
        read_pairs(ShardSet(small), path)


def test_a_list_without_its_columns_or_file_is_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pairs\.csv is no file"):
        read_pairs(ShardSet(small), tmp_path / "pairs.csv")
    with pytest.raises(UsageError, match="columns left, right lack first or second"):
        read_pairs(ShardSet(small), write_list(tmp_path / "pairs.csv", "left,right", "a,b"))
    (tmp_path / "pairs.csv").write_bytes(b"first,second\n\xff,a\n")
    with pytest.raises(DataError, match="no CSV in UTF-8"):
        read_pairs(ShardSet(small), tmp_path / "pairs.csv")


def test_a_bin_holds_the_pairs_bytes_and_answers(large: Path, tmp_path: Path) -> None:
    shards = ShardSet(large)
    pairs = draw_pairs(shards, 100)
    exported = export_bin(large, tmp_path / "new" / "pairs.bin", pairs)
    found = read_bin("pairs", tmp_path / "new" / "pairs.bin")
    assert found.images == [shards.image(row) for row in pairs.rows.ravel().tolist()]
    assert found.same.tolist() == pairs.same.tolist()
    assert exported.lines()[1] == "  100 pairs, 50 of one identity; drawn with seed 0; folds share no identity"
    export_bin(large, tmp_path / "again.bin", draw_pairs(ShardSet(large), 100))
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "new" / "pairs.bin").read_bytes()


def test_a_bin_of_real_faces_is_read_back(real_faces: Path, tmp_path: Path) -> None:
    source = open_recordio(real_faces / "orl")
    convert(
        source, Tags({}, np.zeros((240, 0), np.int16)), tmp_path / "set", ShardConfig(name="orl", origin="authentic")
    )
    pairs = draw_pairs(ShardSet(tmp_path / "set"), 200)
    export_bin(tmp_path / "set", tmp_path / "orl.bin", pairs)
    originals = {source.read(record): int(source.labels[record]) for record in range(240)}
    found = read_bin("orl", tmp_path / "orl.bin")
    labels = np.array([originals[image] for image in found.images]).reshape(-1, 2)
    assert (labels[:, 0] == labels[:, 1]).tolist() == found.same.tolist()


def test_a_bin_that_exists_is_kept(small: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.bin").write_text("mine")
    with pytest.raises(UsageError, match=r"pairs\.bin exists"):
        export_bin(small, tmp_path / "pairs.bin", draw_pairs(ShardSet(small), 20))
    assert (tmp_path / "pairs.bin").read_text() == "mine"


def test_pairs_of_one_kind_are_no_verification_set(small: Path, tmp_path: Path) -> None:
    names = names_of(small, "key")
    path = write_list(tmp_path / "pairs.csv", "first,second", f"{names[1]},{names[2]}")
    with pytest.raises(DataError, match="1 of 1 pairs are of one identity"):
        export_bin(small, tmp_path / "pairs.bin", read_pairs(ShardSet(small), path))
    assert not (tmp_path / "pairs.bin").exists()


def test_a_bin_stopped_before_its_rename_is_not_there(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Stands for the end of the process."""

    def killed(*_: object) -> None:
        raise Killed

    pairs = draw_pairs(ShardSet(small), 20)
    for place in ("os.fsync", "pathlib.Path.replace"):
        with monkeypatch.context() as patched:
            patched.setattr(place, killed)
            with pytest.raises(Killed):
                export_bin(small, tmp_path / "pairs.bin", pairs)
        assert not (tmp_path / "pairs.bin").exists()
    export_bin(small, tmp_path / "pairs.bin", pairs)
    assert len(read_bin("pairs", tmp_path / "pairs.bin").same) == 20


def test_an_image_that_changed_gets_into_no_bin(tmp_path: Path) -> None:
    folder = set_of(tmp_path / "set", [3, 4])
    row = ShardSet(folder).table().to_pylist()[0]
    content = bytearray((folder / "000000.tar").read_bytes())
    content[row["offset"] + row["size"] // 2] ^= 1
    (folder / "000000.tar").write_bytes(content)
    pairs = Pairs(np.array([[0, 1], [2, 3]]), np.array([True, False]), "")
    with pytest.raises(DataError, match=f"sample {row['key']} is not the one"):
        export_bin(folder, tmp_path / "pairs.bin", pairs)
    assert not (tmp_path / "pairs.bin").exists()
