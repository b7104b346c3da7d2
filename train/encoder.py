"""A trained encoder out of a run, ready to embed faces."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pipeline.config import LoaderConfig
from train import checkpoint
from train.backbones import make_encoder
from train.recipe import Recipe


@dataclass(frozen=True)
class TrainedEncoder:
    """An encoder with what it was trained on."""

    network: nn.Module
    loader: LoaderConfig
    """How its training images were made; images to embed are made likewise."""
    description: str
    run: Path
    """Its run's folder."""


def load_encoder(path: Path, device: torch.device) -> TrainedEncoder:
    """Load the encoder of a run folder's newest checkpoint, or of a checkpoint file."""
    found = checkpoint.find(path)
    state = checkpoint.load(found)
    recipe = Recipe.model_validate(state["recipe"])
    network = make_encoder(recipe.encoder, recipe.loader.image_size)
    network.load_state_dict(checkpoint.encoder_weights(state))
    return TrainedEncoder(
        network.to(device).eval(), recipe.loader, f"{path} at step {state['step']}", found.parent.parent
    )
