"""The sheet of a recipe: each set's faces, first as they are and then as training will see them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.augment_config import AugmentConfig
from pipeline.config import LoaderConfig, MixConfig
from pipeline.loader import FaceLoader
from pipeline.mix_sheet import mix_sheet
from pipeline.plan import open_plan
from tests.support import make_set

CONFIG = LoaderConfig(batch_size=16, device="cpu")
FLIP = AugmentConfig()
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
