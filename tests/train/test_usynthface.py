"""Training without identities learns to tell real people apart, whom it has never seen."""

from pathlib import Path
from statistics import mean

import torch

from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.inputs.folders import open_folder
from shardgen.tags import no_tags
from train.distributed import World
from train.encoder import load_encoder
from train.loop import train
from train.metrics import read_metrics
from train.recipe import Recipe
from train.validation import Validation

CPU = torch.device("cpu")


def accuracy(recipe: Recipe) -> float:
    """Of the run's newest encoder, on its validation set."""
    encoder = load_encoder(recipe.run_folder, CPU)
    return Validation(recipe.validation, encoder.loader, World(), CPU).measure(encoder.network)["orl"]


def test_pairs_of_faces_lower_the_loss_and_beat_the_untrained_network(real_faces: Path, tmp_path: Path) -> None:
    source = open_folder(real_faces / "standin" / "images")
    convert(source, no_tags(len(source)), tmp_path / "standin", ShardConfig(name="standin", origin="synthetic"))
    recipe = Recipe.model_validate(
        {
            "name": "pairs",
            "seed": 1,
            "run": tmp_path / "run",
            "mix": {
                "sets": {"standin": {"path": tmp_path / "standin", "sampling": "identity"}},
                "per_identity": 2,
                "epoch": 640,
            },
            "loader": {"batch_size": 128, "device": "cpu"},
            "encoder": {"backbone": "iresnet_mini", "embedding_size": 128},
            "contrastive": {"queue": 512, "groups": 2, "momentum": 0.9},
            "optimizer": {"lr": 0.02},
            "validation": {"bins": {"orl": real_faces / "orl" / "orl_val.bin"}, "every": 100},
            "training": {"epochs": 10, "precision": "fp32", "log_every": 1},
        }
    )
    train(recipe, stop_at=0)
    untrained = accuracy(recipe)
    train(recipe, resume=True)
    losses = [one.loss for one in read_metrics(tmp_path / "run")]
    assert mean(losses[-10:]) < 0.8 * mean(losses[:10])
    assert accuracy(recipe) > untrained
