"""A run that is small enough to be repeated in many ways."""

from pathlib import Path

import pytest

from tests.support import make_set
from train.loop import train
from train.recipe import Recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Six steps of 8 small faces; dropout and flips, so that every random state counts."""
    folder = tmp_path_factory.mktemp("sets")
    make_set(folder / "photos", range(6), 4)
    make_set(folder / "renders", range(6, 12), 4, origin="synthetic")
    sets = {
        "photos": {"path": str(folder / "photos"), "share": "1/3"},
        "renders": {"path": str(folder / "renders"), "share": "2/3", "balance": "group"},
    }
    return Recipe.model_validate(
        {
            "name": "tiny",
            "run": str(folder / "run"),
            "mix": {"sets": sets, "epoch": 24},
            "loader": {"batch_size": 8, "image_size": 32, "device": "cpu", "threads": 1},
            "encoder": {"backbone": "iresnet_mini", "embedding_size": 16, "dropout": 0.2},
            "optimizer": {"lr": 0.05},
            "schedule": {"warmup_epochs": 0.5},
            "training": {"epochs": 2, "precision": "fp32", "log_every": 1},
        }
    )


@pytest.fixture(scope="module")
def uninterrupted(recipe: Recipe, one_thread: None) -> Path:
    """The folder of a run of it; other numbers of threads add up in another order."""
    train(recipe)
    return recipe.run_folder
