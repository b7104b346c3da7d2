"""The published systems: each recipe says what its paper says, and trains."""

import pickle
import re
import shlex
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import yaml

from cli import cli
from pipeline.config import Cap, flatten
from pipeline.plan import open_plan
from shardgen.procedural import draw_face, encode
from tests.support import ROOT, make_set
from train.grid import is_grid, load_grid
from train.loop import train
from train.metrics import read_metrics
from train.recipe import Recipe, load_recipe
from train.schedule import lr_factor

pytestmark = pytest.mark.usefixtures("one_thread")

COMMAND = re.compile(r"^#   .*facemix (.*)", re.MULTILINE)
FILES = sorted((ROOT / "recipes").glob("*.yaml"))
PUBLISHED = ("adaface", "balance", "frcsyn", "insightface", "usynthface", "vec2face")

# Hyper-parameters of the papers and their code, restated. "epochs of x.1" are those at which the rate has dropped.
FIGURES: dict[str, dict[str, Any]] = {
    "balance": {
        "encoder.backbone": "iresnet50",
        "encoder.dropout": 0.4,
        "encoder.embedding_size": 512,
        "head.kind": "cosface",
        "head.scale": 64,
        "head.margin": 0.35,
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 5e-4,
        "optimizer.clip_norm": 5,
        "training.epochs": 40,
        "epochs of x.1": [21, 29, 35],
        "peak_lr": 0.1 / 512 * 512,
        "augment.flip": 0.5,
        "mix.sets.synthetic.augment.randaugment.operations": 4,
        "mix.sets.synthetic.augment.randaugment.magnitude": 16,
        "augment.randaugment": None,
    },
    "frcsyn": {
        "encoder.backbone": "iresnet100",
        "head.kind": "cosface",
        "head.margin": 0.35,
        "optimizer.weight_decay": 5e-4,
        "training.epochs": 40,
        "budget.synthetic.images": 500_000,
        "peak_lr": 0.1,
    },
    "usynthface": {
        "encoder.backbone": "iresnet50",
        "encoder.embedding_size": 512,
        "contrastive.queue": 32768,
        "contrastive.momentum": 0.999,
        "contrastive.temperature": 0.07,
        "contrastive.margin": 0.1,
        "contrastive.groups": 4,
        "loader.batch_size": 2 * 128 * 4,
        "peak_lr": 0.1,
        "training.epochs": 200,
        "schedule.kind": "plateau",
        "schedule.patience": 10,
        "augment.randaugment.operations": 4,
        "augment.randaugment.magnitude": 16,
        "augment.flip": 0.5,
    },
    "vec2face": {
        "encoder.backbone": "iresnet50",
        "encoder.squeeze_excitation": "shortcut",
        "encoder.dropout": 0.4,
        "head.kind": "arcface",
        "head.margin": 0.5,
        "loader.batch_size": 128 * 4,
        "peak_lr": 0.1,
        "optimizer.weight_decay": 5e-4,
        "training.epochs": 26,
        "epochs of x.1": [11, 19, 23],
        "augment.crop.probability": 0.3,
        "augment.low_resolution.probability": 0.3,
        "augment.photometric.probability": 0.3,
        "augment.erasing.probability": 0.5,
    },
    "adaface": {
        "encoder.backbone": "ir50",
        "encoder.dropout": 0.4,
        "head.kind": "adaface",
        "head.margin": 0.4,
        "head.h": 0.333,
        "head.scale": 64,
        "head.t_alpha": 0.01,
        "loader.batch_size": 512,
        "peak_lr": 0.1,
        "optimizer.weight_decay": 5e-4,
        "training.epochs": 26,
        "epochs of x.1": [12, 20, 24],
        "augment.crop.probability": 0.2,
        "augment.low_resolution.probability": 0.2,
        "augment.photometric.probability": 0.2,
    },
    "insightface": {
        "encoder.backbone": "iresnet100",
        "encoder.dropout": 0,
        "head.kind": "cosface",
        "head.margin": 0.4,
        "head.split": True,
        "head.sampled": 0.2,
        "loader.batch_size": 128 * 8,
        "peak_lr": 0.1,
        "optimizer.weight_decay": 5e-4,
        "training.epochs": 20,
        "schedule.kind": "polynomial",
    },
}


def published(name: str) -> Recipe:
    return load_recipe(ROOT / "recipes" / f"{name}.yaml")


def drops(recipe: Recipe) -> list[int]:
    """The epochs that begin with a tenth of the rate of the one before."""
    epochs = round(recipe.training.epochs)
    factors = [lr_factor(recipe.schedule, epoch, epochs) for epoch in range(epochs)]
    return [epoch for epoch in range(1, epochs) if factors[epoch] == pytest.approx(factors[epoch - 1] / 10)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_says_what_was_published(name: str) -> None:
    recipe = published(name)
    said = flatten(recipe.model_dump(mode="python")) | {"peak_lr": recipe.peak_lr, "epochs of x.1": drops(recipe)}
    assert {key: said.get(key) for key in FIGURES[name]} == FIGURES[name]


def test_every_recipe_and_grid_of_the_project_is_one() -> None:
    names = {path.stem: load_grid(path).name if is_grid(path) else load_recipe(path).name for path in FILES}
    assert names == {path.stem: path.stem.removesuffix("_grid") for path in FILES}
    assert set(PUBLISHED) == set(FIGURES) <= names.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_tells_how_each_of_its_sets_is_made_and_what_was_reached(name: str) -> None:
    text = (ROOT / "recipes" / f"{name}.yaml").read_text()
    made = {word for command in COMMAND.findall(text) for word in command.split()}
    recipe = published(name)
    wanted = [*(one.path for one in recipe.mix.sets.values()), *recipe.validation.bins.values()]
    assert {str(path) for path in wanted} <= made
    assert "\n# Published" in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))
def test_the_commands_in_a_recipe_are_ones_that_facemix_knows(path: Path) -> None:
    for line in COMMAND.findall(path.read_text()):
        words = shlex.split(line, comments=True)
        command: click.Command = cli
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        assert command.make_context("facemix", words)


def test_the_grid_s_cells_have_ten_thousand_identities_of_which_none_to_all_are_synthetic() -> None:
    grid = load_grid(ROOT / "recipes" / "balance_grid.yaml")
    caps = {
        cell: {name: one.identities.most for name, one in recipe.mix.sets.items() if isinstance(one.identities, Cap)}
        for cell, recipe in grid.cells.items()
    }
    assert [one.get("synthetic", 0) for one in caps.values()] == [0, 2000, 4000, 6000, 8000, 10000]
    assert {sum(one.values()) for one in caps.values()} == {10_000}
    assert list(caps) == ["0K", "2K", "4K", "6K", "8K", "10K"]
    base = published("balance").model_dump(exclude={"name", "run"})
    assert grid.cells["2K"].model_dump(exclude={"name", "run"}) == base


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands for data/: small sets under any name, and a verification set."""
    folder = tmp_path_factory.mktemp("data")
    make_set(folder / "authentic", range(6), 4)
    make_set(folder / "synthetic", range(6, 12), 4, origin="synthetic")
    faces = [encode(draw_face(0, 100 + image // 2, image % 2)) for image in range(40)]
    same = [pair % 2 == 0 for pair in range(20)]
    shifted = [faces[(image + 2) % 40 if image % 4 == 3 else image] for image in range(40)]
    (folder / "unseen.bin").write_bytes(pickle.dumps((shifted, same)))
    return folder


def shrunk(recipe: Recipe, drawn: Path, run: Path) -> dict[str, Any]:
    """Overrides that leave of a system all but its size: network, batch, and how many people there are."""
    few = {f"mix.sets.{name}.identities": 4 for name, one in recipe.mix.sets.items() if one.identities}
    small = {
        **{f"mix.sets.{name}.path": str(drawn / name) for name in recipe.mix.sets},
        **{f"validation.bins.{name}": str(drawn / "unseen.bin") for name in recipe.validation.bins},
        "loader": {"batch_size": 16, "image_size": 32, "threads": 1, "device": "cpu"},
        "encoder.backbone": "iresnet_mini",
        "encoder.embedding_size": 16,
        "training.precision": "fp32",
        "training.log_every": 1,
        "run": str(run),
    }
    return few | small


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_trains(name: str, drawn: Path, tmp_path: Path) -> None:
    overrides = shrunk(published(name), drawn, tmp_path)
    texts = [f"{key}={yaml.safe_dump(value, default_flow_style=True, width=999)}" for key, value in overrides.items()]
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", texts)
    assert train(recipe, stop_at=2).step == 2
    assert read_metrics(tmp_path)[0].lr == pytest.approx(recipe.peak_lr)


def test_an_epoch_of_usynthface_is_one_pair_of_each_person(drawn: Path) -> None:
    mix = published("usynthface").mix
    sets = {"synthetic": mix.sets["synthetic"].model_copy(update={"path": drawn / "synthetic", "identities": None})}
    plan = open_plan(mix.model_copy(update={"sets": sets}), 0, 4)
    assert plan.batches_per_epoch * 4 == 2 * 6
    samples = np.concatenate([plan.batch(number).sample_ids for number in range(plan.batches_per_epoch)])
    pairs = plan.labels(samples).reshape(-1, 2).tolist()
    assert sorted(pairs) == [[person, person] for person in range(6)]
    assert len(set(samples.tolist())) == 12  # two images, not one twice
