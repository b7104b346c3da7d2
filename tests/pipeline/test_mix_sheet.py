"""The sheet of a recipe: each set's faces, first as they are and then as training will see them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.augment_config import AugmentConfig
from pipeline.config import LoaderConfig, MixConfig
from pipeline.loader import FaceLoader
from pipeline.mix_sheet import _some_of, augmented_rows, labelled, mix_sheet
from pipeline.plan import Plan, open_plan
from tests.pipeline.simulated import Rows, catalog_of, mix_of
from tests.support import make_set

CONFIG = LoaderConfig(batch_size=16, device="cpu")
FLIP = AugmentConfig()
NOISE = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
RAND = AugmentConfig.model_validate("randaugment")


@pytest.fixture(scope="module")
def two_sets(small_set: Path, other_set: Path) -> MixConfig:
    sets = {"plain": {"path": small_set}, "changed": {"path": other_set, "augment": RAND}}
    return MixConfig.model_validate({"sets": sets})


@pytest.fixture(scope="module")
def other_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("other") / "other", range(8, 14))


def test_every_set_shows_faces_as_they_are_and_as_its_own_augmentation_makes_them(two_sets: MixConfig) -> None:
    picture = mix_sheet(open_plan(two_sets, 0, 16), FLIP, CONFIG)
    faces = picture[:, -9 * 112 :].reshape(8, 112, 9, 112, 3).swapaxes(1, 2)
    plain, changed = faces[:4], faces[4:]
    for face in plain:
        original, flipped = face[0], face[0][:, ::-1]
        assert all((look == original).all() or (look == flipped).all() for look in face)
    assert np.mean([(look == face[0]).all() for face in changed for look in face[1:]]) < 0.5


def test_what_it_shows_is_what_the_loader_gives(small_set: Path) -> None:
    mix = MixConfig.model_validate({"sets": {"one": {"path": small_set}}})
    plan = open_plan(mix, 3, 16)
    picture = mix_sheet(plan, RAND, CONFIG)
    looks = picture[:, -9 * 112 :].reshape(4, 112, 9, 112, 3).swapaxes(1, 2)[:, 1]
    loader = FaceLoader(plan, RAND, CONFIG, torch.device("cpu"))
    first_pass = [image.permute(1, 2, 0).numpy() for batch in (next(loader), next(loader)) for image in batch.images]
    loader.close()
    assert all(any((image == look).all() for image in first_pass) for look in looks)


def test_each_face_comes_first_and_then_as_it_is_in_each_pass() -> None:
    before = NOISE.copy()
    rows = augmented_rows(NOISE, np.arange(3), AugmentConfig(flip=1), 0, 2)
    assert rows.shape == (3, 3, 32, 32, 3)
    assert np.array_equal(rows[:, 0], NOISE)
    assert np.array_equal(rows[:, 1], NOISE[:, :, ::-1])
    assert np.array_equal(rows[:, 2], NOISE[:, :, ::-1])
    assert np.array_equal(NOISE, before)


def test_looks_are_those_of_the_samples_in_the_run() -> None:
    ids = np.array([5, 900, 31])
    rows = augmented_rows(NOISE, ids, FLIP, 4, 20)
    again = augmented_rows(NOISE[[2, 0]], ids[[2, 0]], FLIP, 4, 20)
    assert np.array_equal(rows[[2, 0]], again)
    assert (rows[:, 1] != rows[:, 2:].swapaxes(0, 1)).any()
    assert not np.array_equal(rows, augmented_rows(NOISE, ids, FLIP, 5, 20))


def test_rows_lie_below_each_other_beside_their_label() -> None:
    pictures = augmented_rows(NOISE, np.arange(3), FLIP, 0, 1)
    sheet = labelled("a set", pictures)
    label = sheet[:, : -2 * 32]
    for number, face in enumerate(pictures):
        assert np.array_equal(sheet[32 * number : 32 * (number + 1), -2 * 32 :], np.concatenate(list(face), 1))
    assert (label[:32] < 100).any()
    assert (label[32:] == 255).all()


def test_its_faces_are_distinct_and_of_every_stratum_even_of_a_tiny_one() -> None:
    rows: Rows = [(person, group) for person, group in enumerate(["rare"] + ["common"] * 50)]
    plan = Plan(catalog_of({"one": rows}), mix_of({"one": {"balance": "group"}}), 0, 8)
    ids = _some_of(plan, "one").tolist()
    assert len(set(ids)) == len(ids) > 1
    assert 0 in ids
