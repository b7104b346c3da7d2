"""`facemix train --check`: what a run would stumble over, found before it begins."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from shardgen.errors import DataError, UsageError
from shardgen.procedural import draw_face, encode
from tests.train.runs import copy_of
from train.backbones import make_encoder
from train.check import check
from train.loop import train
from train.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def checked(recipe: Recipe, run: Path, **changes: Any) -> str:
    return "\n".join(check(copy_of(recipe, run=str(run), **changes)))


def bin_of(path: Path, damaged: bool = False) -> str:
    faces = [encode(draw_face(0, 100 + image % 24, image)) for image in range(40)]
    faces[7] = faces[7][: 100 if damaged else None]
    path.write_bytes(pickle.dumps((faces, [pair % 2 == 0 for pair in range(20)])))
    return str(path)


def test_it_says_what_a_run_would_be_made_of_and_writes_nothing(recipe: Recipe, tmp_path: Path) -> None:
    found = checked(
        recipe,
        tmp_path / "run",
        budget={"synthetic": {"images": 500}},
        validation={"bins": {"apart": bin_of(tmp_path / "apart.bin")}},
    )
    assert "photos" in found
    assert "authentic: 6 identities, 24 images\n" in found
    assert "synthetic: 6 identities, 24 images; its budget: images 500\n" in found
    assert "total: 12 identities, 48 images\n" in found
    weights = sum(one.numel() for one in make_encoder(recipe.encoder, 32).parameters())
    assert f"iresnet_mini: {weights / 1e6:.1f} million weights; trained against cosface over 12 identities" in found
    assert "validation: apart, 20 pairs, 0." in found
    assert "the first batch: 8 images, decoded and augmented" in found
    assert found.endswith("run: would begin")
    assert not (tmp_path / "run").exists()


def test_it_says_that_a_run_would_go_on(recipe: Recipe, tmp_path: Path) -> None:
    train(copy_of(recipe, run=str(tmp_path)), stop_at=2)
    assert "holds a run, step-00000002.pt is its newest; --resume goes on" in checked(recipe, tmp_path)


def test_all_sets_that_are_missing_are_named_at_once(recipe: Recipe, tmp_path: Path) -> None:
    changes = {"mix__sets__photos__path": "nowhere", "mix__sets__renders__path": "elsewhere"}
    with pytest.raises(DataError, match=r"2 of 2 sets cannot be used: photos: nowhere.*; renders: elsewhere") as error:
        checked(recipe, tmp_path, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": {"total": {"images": 47}}}, "48 images"),
        ({"encoder__pretrained": "nowhere.pt"}, "nowhere.pt does not exist"),
        ({"training__accumulate": 9}, "training.accumulate 9 is more than the 8 images"),
        ({"mix__sets__photos__identities": {"most": 2, "by": "quality"}}, "quality"),
    ],
)
def test_what_a_run_would_refuse_it_refuses(
    changes: dict[str, Any], message: str, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises((UsageError, DataError), match=message):
        checked(recipe, tmp_path, **changes)


def test_a_verification_set_is_measured_once_so_a_bad_image_is_found(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="apart: image 2 of pair 3"):
        checked(recipe, tmp_path, validation={"bins": {"apart": bin_of(tmp_path / "x.bin", damaged=True)}})
