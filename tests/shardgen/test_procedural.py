"""Drawn faces: the same call draws the same face, and faces differ in what they should."""

import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from shardgen.images import check, decode
from shardgen.inputs.folders import open_folder
from shardgen.inputs.records import open_recordio
from shardgen.procedural import (
    GROUPS,
    Style,
    draw_bin,
    draw_demo,
    draw_face,
    draw_folder,
    draw_recordio,
    encode,
    group_of,
)

STYLES: tuple[Style, ...] = ("photo", "render")


@pytest.mark.parametrize("style", STYLES)
def test_a_face_is_a_function_of_seed_identity_and_image(style: Style) -> None:
    face = draw_face(3, 5, 7, style)
    assert face.shape == (112, 112, 3)
    assert face.dtype == np.uint8
    draw_face(0, 0, 0)  # another face in between changes nothing
    assert (draw_face(3, 5, 7, style) == face).all()
    for other in ((4, 5, 7), (3, 6, 7), (3, 5, 8)):
        assert (draw_face(*other, style) != face).any()


def test_styles_differ() -> None:
    photo, render = (draw_face(0, 1, 2, style).astype(int) for style in STYLES)

    def grain(face: np.ndarray[tuple[int, ...], np.dtype[np.int_]]) -> float:
        return float(np.abs(np.diff(face, axis=0)).mean())

    assert grain(photo) > 2 * grain(render)


def test_images_of_one_identity_are_nearer_to_each_other_than_to_others() -> None:
    faces = np.array([[draw_face(0, 4 * person, image) for image in range(2)] for person in range(16)], np.float64)
    colour = faces[:, :, 40:80, 40:72].mean(axis=(2, 3))  # of the middle of the face, within one group
    colour /= colour.sum(axis=-1, keepdims=True)  # without the light, which is the image's
    distance = np.linalg.norm(colour[:, None, 0] - colour[None, :, 1], axis=-1)
    others = ~np.eye(16, dtype=bool)
    assert distance.diagonal().mean() < distance[others].mean() / 2


def test_groups_take_turns() -> None:
    assert [group_of(identity) for identity in range(8)] == [*GROUPS, *GROUPS]


def test_encoding_keeps_the_picture() -> None:
    face = draw_face(0, 0, 0, "render")
    assert np.abs(decode(encode(face)).astype(int) - face).mean() < 4


def test_a_drawn_folder_names_its_identities_and_their_groups(tmp_path: Path) -> None:
    draw_folder(tmp_path, 1, range(40, 43), range(2, 4))
    source = open_folder(tmp_path / "images")
    assert list(source.names()) == [f"{identity:05d}/{image}.jpg" for identity in (40, 41, 42) for image in (2, 3)]
    assert source.read(0) == encode(draw_face(1, 40, 2))
    rows = (tmp_path / "identities.csv").read_text().split()
    assert rows == ["identity,group", *(f"{name},{group_of(int(name))}" for name in source.identities)]
    assert not source.ignored


def test_a_drawn_recordio_counts_its_identities_from_0(tmp_path: Path) -> None:
    draw_recordio(tmp_path, 1, range(40, 43), images=2)
    source = open_recordio(tmp_path)
    assert (source.identities, source.labels.tolist()) == (["0", "1", "2"], [0, 0, 1, 1, 2, 2])
    assert source.read(2) == encode(draw_face(1, 41, 0))
    assert (tmp_path / "identities.csv").read_text().split() == ["identity,group", "0,north", "1,east", "2,south"]


def test_a_drawn_verification_set_has_ten_folds_of_both_kinds(tmp_path: Path) -> None:
    draw_bin(tmp_path / "drawn.bin", 1, [5, 6], images=2, pairs=40)
    bins, same = pickle.loads((tmp_path / "drawn.bin").read_bytes())
    assert len(bins) == 2 * len(same) == 80
    assert all(sum(same[fold : fold + 4]) == 2 for fold in range(0, 40, 4))
    person = {encode(draw_face(1, identity, image)): identity for identity in (5, 6) for image in (0, 1)}
    for first, second, genuine in zip(bins[::2], bins[1::2], same, strict=True):
        assert first != second
        assert (person[first] == person[second]) == genuine


def test_the_demo_s_unseen_people_are_in_no_training_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, range]] = []
    monkeypatch.setattr(
        "shardgen.procedural.draw_recordio", lambda to, _, people, **__: drawn.append((to.name, people))
    )
    monkeypatch.setattr(
        "shardgen.procedural.draw_folder", lambda to, _, people, *__, **___: drawn.append((to.name, people))
    )
    monkeypatch.setattr("shardgen.procedural.draw_bin", lambda to, _, people, **__: drawn.append((to.name, people)))
    draw_demo(tmp_path)
    people = dict(drawn)
    assert people.keys() == {"authentic", "synthetic", "gallery", "probes", "unseen.bin"}
    disjoint = [people["authentic"], people["synthetic"], people["gallery"]]
    assert all(not set(one) & set(other) for one, other in pairwise([*disjoint, disjoint[0]]))
    assert people["gallery"] == people["probes"] == people["unseen.bin"]


def test_every_drawn_face_passes_the_check() -> None:
    assert {check(encode(draw_face(0, identity, 0))).extension for identity in range(8)} == {"jpg"}
