"""Planted copies, near copies, names and people are found; what only looks like them is not."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardgen.audit import Audit, Duplicates, audit, exact_duplicates, near_duplicates, shared_names
from shardgen.audit_people import Embeddings, overlapping_identities
from shardgen.audit_samples import Samples, open_samples
from shardgen.audit_sheet import pair_sheet
from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.errors import UsageError
from shardgen.images import Rgb, decode
from shardgen.inputs.folders import open_folder
from shardgen.procedural import draw_folder
from shardgen.shardset import ShardSet
from shardgen.sheet import CELL
from shardgen.tags import no_tags

Files = Mapping[str, bytes]
"""`identity/image` -> bytes."""


def files_to_set(out: Path, files: Files, **config: object) -> Path:
    """Convert image files, in the order of their names unless told otherwise."""
    for name, content in files.items():
        path = out.with_name(out.name + ".raw") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    source = open_folder(out.with_name(out.name + ".raw"))
    options = {"name": out.name, "origin": "authentic", "order": "source", "shard_samples": 3}
    convert(source, no_tags(len(source)), out, ShardConfig.model_validate(options | config))
    return out


def picture(number: int) -> bytes:
    """Return a small image file that no other number has."""
    pixels = np.full((4, 4, 3), (number, number // 256, 7), np.uint8)
    return bytes(cv2.imencode(".png", pixels)[1])


def again(image: bytes, quality: int = 60) -> bytes:
    """Return a near copy."""
    return bytes(cv2.imencode(".jpg", decode(image)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1])


def ends(found: Duplicates) -> list[tuple[str, str]]:
    """Return the sources of the pairs."""
    return [(pair.first.source, pair.second.source) for pair in found.pairs]


def counts(found: Duplicates) -> tuple[int, int, int, int]:
    return found.num_groups, found.num_redundant, found.num_across_sets, found.num_mislabelled


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Eight drawn faces of different people."""
    folder = tmp_path_factory.mktemp("faces")
    draw_folder(folder, 0, range(8), range(1))
    return [path.read_bytes() for path in sorted((folder / "images").rglob("*.jpg"))]


def test_copies_within_an_identity_across_identities_and_across_sets_are_told_apart(tmp_path: Path) -> None:
    a, b, c, d = map(picture, range(4))
    one = files_to_set(tmp_path / "one", {"p/0.png": a, "p/1.png": a, "q/0.png": b, "r/0.png": b, "r/1.png": c})
    two = files_to_set(tmp_path / "two", {"x/0.png": c, "x/1.png": d})
    found = exact_duplicates(open_samples([one, two]))
    assert found.num_images == 7
    assert counts(found) == (3, 3, 1, 1)
    assert ends(found) == [("q/0.png", "r/0.png"), ("r/1.png", "x/0.png"), ("p/0.png", "p/1.png")]
    assert [pair.relation for pair in found.pairs] == ["two identities", "two sets", "one identity"]


def test_a_copy_is_named_by_set_key_identity_and_source(tmp_path: Path) -> None:
    first = files_to_set(tmp_path / "one", {f"p/{n}.png": picture(n) for n in range(5)})
    second = files_to_set(tmp_path / "two", {"x/0.png": picture(9), "y/1.png": picture(4)})
    (pair,) = exact_duplicates(open_samples([first, second])).pairs
    one, other = pair.first, pair.second
    assert (one.set_number, one.set_name, one.row, one.key) == (0, "one", 4, "00000004")
    assert (one.identity, one.source) == ("p", "p/4.png")
    assert (other.set_number, other.set_name, other.row, other.key) == (1, "two", 1, "00000001")
    assert (other.identity, other.source) == ("y", "y/1.png")


def test_sets_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = [files_to_set(tmp_path / name, {"p/0.png": picture(1)}, name="faces") for name in ("train", "test")]
    assert audit(paths, near=False).sets == [str(path) for path in paths]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=10), min_size=1, max_size=3)
)
def test_groups_of_copies_are_those_a_dictionary_gives(
    tmp_path_factory: pytest.TempPathFactory, sets: list[list[tuple[int, int]]]
) -> None:
    """Each set is a list of (identity, content)."""
    folder = tmp_path_factory.mktemp("sets")
    places = defaultdict(list)
    paths = []
    for number, samples in enumerate(sets):
        files = {f"{identity}/{row:02d}.png": picture(content) for row, (identity, content) in enumerate(samples)}
        paths.append(files_to_set(folder / str(number), files))
        for identity, content in samples:
            places[content].append((number, identity))
    groups = [found for found in places.values() if len(found) > 1]
    assert counts(exact_duplicates(open_samples(paths))) == (
        len(groups),
        sum(map(len, groups)) - len(groups),
        sum(len({number for number, _ in group}) > 1 for group in groups),
        sum(max(Counter(number for number, _ in set(group)).values()) > 1 for group in groups),
    )


def test_the_most_telling_pair_of_each_group_comes_first(tmp_path: Path) -> None:
    a, b, c = map(picture, range(3))
    files = {"p/0.png": a, "p/1.png": a, "p/2.png": a, "q/0.png": a, "q/1.png": b, "q/2.png": b, "q/3.png": c}
    found = exact_duplicates(open_samples([files_to_set(tmp_path / "set", files)]))
    assert ends(found)[:2] == [("p/0.png", "q/0.png"), ("q/1.png", "q/2.png")]
    assert ends(found)[2:] == [("p/0.png", "p/1.png"), ("p/0.png", "p/2.png")]


def test_a_listing_has_an_end_and_the_counts_do_not(
    tmp_path: Path, two_sets: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardgen.audit.LISTED", 2)
    monkeypatch.setattr("shardgen.audit_people.LISTED", 2)
    files = {f"p/{n}.png": picture(n // 2) for n in range(8)}
    copies = exact_duplicates(open_samples([files_to_set(tmp_path / "set", files)]))
    assert (copies.num_redundant, len(copies.pairs)) == (4, 2)
    alike = overlapping_identities(two_sets, of_sets(0, 0, 0, 1, 1, 1))
    assert (alike.num_pairs, len(alike.pairs)) == (6, 2)


def test_near_copies_are_found_within_and_across_sets_and_exact_ones_are_not_repeated(
    tmp_path: Path, faces: list[bytes]
) -> None:
    a, b, c, d, *others = faces
    one = {"p/0.jpg": a, "p/1.jpg": a, "p/2.jpg": again(a), "q/0.jpg": b, "q/1.jpg": c, "r/0.jpg": again(c)}
    two = {"x/0.jpg": d, "x/1.jpg": again(b), **{f"y/{n}.jpg": other for n, other in enumerate(others)}}
    paths = [files_to_set(tmp_path / "one", one), files_to_set(tmp_path / "two", two)]
    samples = open_samples(paths)
    assert ends(exact_duplicates(samples)) == [("p/0.jpg", "p/1.jpg")]
    near = near_duplicates(samples)
    assert near.num_images == 11
    assert counts(near) == (3, 3, 1, 1)
    assert ends(near) == [("q/1.jpg", "r/0.jpg"), ("q/0.jpg", "x/1.jpg"), ("p/0.jpg", "p/2.jpg")]


def test_a_chain_of_near_copies_is_one_group(tmp_path: Path, faces: list[bytes]) -> None:
    files = {f"p/{quality}.jpg": again(faces[0], quality) for quality in range(40, 80)}
    near = near_duplicates(open_samples([files_to_set(tmp_path / "set", files)]))
    assert counts(near) == (1, 39, 0, 0)
    assert len(near.pairs) == 39


def test_photographs_of_real_people_are_no_copies_of_each_other_but_of_their_recompressed_selves(
    tmp_path: Path, real_faces: Path
) -> None:
    images = real_faces / "standin" / "images"
    files = {str(path.relative_to(images)): path.read_bytes() for path in sorted(images.glob("id0000[0-4]/*.jpg"))}
    one = files_to_set(tmp_path / "one", files)
    assert near_duplicates(open_samples([one])).num_groups == 0
    two = files_to_set(tmp_path / "two", {name: again(content, 50) for name, content in files.items()})
    found = near_duplicates(open_samples([one, two]))
    assert counts(found) == (40, 40, 40, 0)
    assert all(one == other for one, other in ends(found))


def test_names_in_two_sets_are_listed_for_each_two_that_share_any(tmp_path: Path) -> None:
    people = {"one": ["Ann", "Bob", "7"], "two": ["bob", "Ann", "7"], "three": ["7", "42"], "four": ["Zoe"]}
    paths = [files_to_set(tmp_path / name, {f"{who}/0.png": picture(0) for who in people[name]}) for name in people]
    shared = shared_names(open_samples(paths))
    assert [(*one.sets, *one.names) for one in shared] == [
        ("one", "two", "7", "Ann"),
        ("one", "three", "7"),
        ("two", "three", "7"),
    ]
    assert [one.only_numbers for one in shared] == [False, True, True]
    assert shared[0].line() == "identity names in both one and two: 2: 7, Ann"
    assert "numbers, which need not mean the same people: 7" in shared[1].line()


def test_a_name_without_a_sample_is_in_no_set(tmp_path: Path) -> None:
    one = files_to_set(tmp_path / "one", {"Ann/0.png": b"", "Bob/0.png": picture(0)}, max_rejected=0.5)
    two = files_to_set(tmp_path / "two", {"Ann/0.png": picture(1), "Bob/0.png": picture(2)})
    assert [one.names for one in shared_names(open_samples([one, two]))] == [["Bob"]]


def people(*numbers: int) -> Embeddings:
    """Return an embedding for each image: those of one person are 0.9 alike or so, those of two far less."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(1 + max(numbers), 64))
    vectors = centres[list(numbers)] + rng.normal(size=(len(numbers), 64)) / 3
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors, np.float32)


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Two sets of 3 identities with 4 images each."""
    folder = tmp_path_factory.mktemp("people")
    return open_samples(
        [
            files_to_set(
                folder / name,
                {f"{name}{who}/{n}.png": picture(100 * start + 4 * who + n) for who in range(3) for n in range(4)},
            )
            for start, name in enumerate(["a", "b"])
        ]
    )


def of_sets(*numbers: int) -> list[Embeddings]:
    """Return embeddings of `two_sets`, given which person each identity is."""
    every = people(*np.repeat(numbers, 4).tolist())
    return [every[:12], every[12:]]


def test_a_person_in_two_sets_and_one_under_two_names_are_found(two_sets: Samples) -> None:
    found = overlapping_identities(two_sets, of_sets(0, 1, 1, 2, 0, 3))
    assert (found.num_identities, found.num_pairs, found.num_across_sets) == (6, 2, 1)
    named = {(pair.first.identity, pair.second.identity): pair for pair in found.pairs[:2]}
    assert named.keys() == {("a0", "b1"), ("a1", "a2")}
    assert named["a0", "b1"].relation == "two sets"
    assert named["a0", "b1"].first.source == "a0/0.png"
    assert named["a1", "a2"].relation == "two identities"
    assert found.own_similarity == found.threshold


def test_the_closest_identities_are_shown_even_if_none_is_above_the_threshold(two_sets: Samples) -> None:
    embeddings = of_sets(0, 1, 2, 3, 4, 5)
    found = overlapping_identities(two_sets, embeddings)
    assert (found.num_pairs, found.num_across_sets) == (0, 0)
    assert found.nearest_similarity < 0.6
    assert found.threshold > 0.9
    measures = [pair.measure for pair in found.pairs]
    assert measures == sorted(measures, reverse=True)
    centres = np.stack([part.mean(0) for whole in embeddings for part in np.split(whole, 3)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    assert measures[0] == pytest.approx(max(one @ other for one, other in combinations(centres, 2)), abs=1e-6)


@pytest.mark.parametrize("block", [1, 4, 1_024])
def test_all_pairs_above_a_given_threshold_are_counted(
    two_sets: Samples, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardgen.audit_people._QUERIES", block)
    found = overlapping_identities(two_sets, of_sets(0, 0, 0, 0, 1, 2), threshold=0.8)
    assert (found.threshold, found.num_pairs, found.num_across_sets) == (0.8, 6, 3)
    assert len({(pair.first.identity, pair.second.identity) for pair in found.pairs}) == len(found.pairs)
    assert all(pair.measure > 0.8 for pair in found.pairs[:6])
    assert all(pair.measure < 0.8 for pair in found.pairs[6:])


def test_an_identity_without_a_twin_sets_no_limit(tmp_path: Path) -> None:
    samples = open_samples([files_to_set(tmp_path / "set", {"p/0.png": picture(0), "q/0.png": picture(1)})])
    with pytest.raises(UsageError, match="no identity has two images"):
        overlapping_identities(samples, [people(0, 1)])
    found = overlapping_identities(samples, [people(0, 0)], threshold=0.7)
    assert (found.num_pairs, found.own_similarity) == (1, None)


def test_embeddings_of_another_state_of_the_set_are_refused(two_sets: Samples) -> None:
    embeddings = of_sets(0, 1, 2, 3, 4, 5)
    with pytest.raises(UsageError, match="b: 11 embeddings for 12 samples"):
        overlapping_identities(two_sets, [embeddings[0], embeddings[1][1:]])


def test_one_identity_alone_overlaps_with_nobody(tmp_path: Path) -> None:
    samples = open_samples([files_to_set(tmp_path / "set", {"p/0.png": picture(0), "p/1.png": picture(1)})])
    with pytest.raises(UsageError, match="one identity alone"):
        overlapping_identities(samples, [people(0, 0)])


def test_a_set_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    path = files_to_set(tmp_path / "set", {"p/0.png": picture(0)})
    with pytest.raises(UsageError, match="given twice"):
        audit([path, path / "manifest.json"])


def test_what_a_person_reads(tmp_path: Path, faces: list[bytes]) -> None:
    a, b, c, *_ = faces
    one = files_to_set(tmp_path / "one", {"Ann/0.jpg": a, "Bob/0.jpg": a, "Bob/1.jpg": b})
    two = files_to_set(tmp_path / "two", {"Bob/0.jpg": again(b), "Eve/0.jpg": c})
    embeddings = [people(0, 1, 1), people(1, 2)]
    found = audit([one, two], embeddings=embeddings)
    assert not found.clean
    assert found.near is not None
    (near,), (alike, *_) = found.near.pairs, found.overlap.pairs if found.overlap else ()
    lines = found.lines()
    assert lines[0] == "one, two: 5 samples"
    assert lines[1] == (
        "copies: 1 of 5 images could go, in 1 groups: 0 across sets, 1 under two identities of one set "
        "(errors in its labels)"
    )
    assert lines[2] == ("  two identities  same bytes  one 00000000  Ann  Ann/0.jpg  one 00000001  Bob  Bob/0.jpg")
    assert lines[3].startswith("near copies (at most 18 bits differ): 1 of 4 images could go, in 1 groups: 1 across")
    assert lines[4].startswith(f"  two sets  {near.measure} bits differ  one 00000002  Bob  Bob/1.jpg  two 00000000")
    assert lines[5] == "identity names in both one and two: 1: Bob"
    assert lines[6].startswith("people under two names: 1 pairs of 4 identities above similarity 0.")
    assert f"similarity {alike.measure:.3f}" in lines[7]
    assert [alike.first.source, alike.second.source] == ["Bob/0.jpg", "Bob/0.jpg"]


def test_a_table_is_cut_and_says_so(tmp_path: Path) -> None:
    files = {f"p/{n:02d}.png": picture(n // 2) for n in range(30)}
    lines = audit([files_to_set(tmp_path / "set", files)], near=False).lines()
    assert len(lines) == 2 + 10 + 1
    assert lines[-1] == "  and 5 more"


def test_a_clean_set_is_called_so(tmp_path: Path, faces: list[bytes]) -> None:
    one, two = (
        files_to_set(tmp_path / name, {f"{n}/0.jpg": face for n, face in enumerate(part)})
        for name, part in (("one", faces[:4]), ("two", faces[4:]))
    )
    found = audit([one, two])
    assert found.clean  # the shared names are numbers
    assert found.lines()[1:3] == ["copies: none", "near copies (at most 18 bits differ): none"]
    assert audit([one]).lines()[1:] == ["copies: none", "near copies (at most 18 bits differ): none"]


@pytest.mark.parametrize(("identity", "face"), [("Bob", "same"), ("Bob", "again"), ("Ann", "other")])
def test_sets_that_share_an_image_or_a_name_are_not_clean(
    tmp_path: Path, faces: list[bytes], identity: str, face: str
) -> None:
    content = {"same": faces[0], "again": again(faces[0]), "other": faces[1]}[face]
    one = files_to_set(tmp_path / "one", {"Ann/0.jpg": faces[0]})
    assert not audit([one, files_to_set(tmp_path / "two", {f"{identity}/0.jpg": content})]).clean


def test_a_set_with_a_person_under_two_names_is_not_clean(two_sets: Samples) -> None:
    paths = [one.folder for one in two_sets.sets]
    assert audit(paths, near=False, embeddings=of_sets(0, 1, 2, 3, 4, 5)).clean
    assert not audit(paths, near=False, embeddings=of_sets(0, 1, 2, 3, 4, 4)).clean


def test_the_document_for_machines_is_json(tmp_path: Path, faces: list[bytes]) -> None:
    path = files_to_set(tmp_path / "set", {"Ann/0.jpg": faces[0], "Bob/0.jpg": faces[0], "Bob/1.jpg": faces[1]})
    document = json.loads(json.dumps(audit([path], embeddings=[people(0, 1, 1)], threshold=0.99).to_json()))
    assert document["clean"] is False
    assert document["exact"]["num_mislabelled"] == 1
    assert document["exact"]["pairs"][0]["second"]["source"] == "Bob/0.jpg"
    assert document["near"]["num_images"] == 2
    assert document["overlap"]["threshold"] == 0.99


def cells(sheet: Rgb) -> list[list[Rgb]]:
    """Return the two images of each row."""
    return [[sheet[top : top + CELL, left : left + CELL] for left in (0, CELL)] for top in range(0, len(sheet), CELL)]


def test_a_sheet_shows_the_two_images_of_each_pair_and_what_is_said_of_them(tmp_path: Path, faces: list[bytes]) -> None:
    a, b, c, d, *_ = faces
    one = files_to_set(tmp_path / "one", {"p/0.jpg": c, "p/1.jpg": a, "p/2.jpg": b, "q/0.jpg": d})
    two = files_to_set(tmp_path / "two", {"x/0.jpg": d, "y/0.jpg": again(b)})
    found = audit([one, two])
    sheet = pair_sheet([one, two], found.pairs(5))
    expected = [[d, d], [b, again(b)]]
    for row, images in zip(cells(sheet), expected, strict=True):
        assert [(cell == decode(image)).all() for cell, image in zip(row, images, strict=True)] == [True, True]
    labels = sheet[:, 2 * CELL :]
    assert (labels[:CELL] != 255).any()
    assert (labels[:CELL] != labels[CELL:]).any()


def test_images_of_other_sizes_fill_their_cells_and_names_beyond_ascii_are_drawn_too(tmp_path: Path) -> None:
    path = files_to_set(tmp_path / "set", {"Zoë/0.png": picture(5), "q/0.png": picture(5)})
    sheet = pair_sheet([path], audit([path], near=False).pairs(5))
    assert (sheet[:, : 2 * CELL] == decode(picture(5))[0, 0]).all()


def test_a_sheet_takes_the_first_pairs_of_each_finding(two_sets: Samples) -> None:
    paths = [one.folder for one in two_sets.sets]
    found: Audit = audit(paths, near=False, embeddings=of_sets(0, 0, 1, 1, 2, 2))
    assert [pair.finding for pair in found.pairs(2)] == ["alike", "alike"]
    assert len(found.pairs(1)) == 1


def test_a_sheet_without_pairs_says_so(tmp_path: Path) -> None:
    sheet = pair_sheet([files_to_set(tmp_path / "set", {"p/0.png": picture(0)})], [])
    assert (sheet != 255).any()


def test_the_image_of_a_pair_is_that_of_its_row(two_sets: Samples) -> None:
    found = overlapping_identities(two_sets, of_sets(0, 1, 2, 3, 1, 4))
    second = found.pairs[0].second
    assert ShardSet(two_sets.sets[1].folder).image(second.row) == picture(100 + 4)
