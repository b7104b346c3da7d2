"""A trained encoder out of a run."""

from pathlib import Path

import pytest
import torch
from torch import nn

from shardgen.errors import DataError, UsageError
from train import checkpoint
from train.backbones import make_encoder
from train.encoder import load_encoder
from train.recipe import Recipe

CPU = torch.device("cpu")
RECIPE = Recipe.model_validate(
    {
        "name": "tiny",
        "mix": {"sets": {"a": {"path": "nowhere"}}},
        "loader": {"image_size": 32, "batch_size": 5},
        "encoder": {"backbone": "iresnet_mini", "embedding_size": 16, "dropout": 0.5},
    }
)


pytestmark = pytest.mark.usefixtures("one_thread")


def save(run: Path, step: int) -> tuple[Path, nn.Module]:
    torch.manual_seed(step)
    encoder = make_encoder(RECIPE.encoder, RECIPE.loader.image_size)
    encoder(torch.rand(4, 3, 32, 32))  # so that batch norm has a record of its own
    state = {"recipe": RECIPE.model_dump(mode="json"), "encoder": encoder.state_dict(), "updates": {}}
    return checkpoint.save(run / "checkpoints", step, state, keep=3), encoder.eval()


@pytest.mark.parametrize("of", ["run", "file"])
def test_the_encoder_computes_what_was_trained(of: str, tmp_path: Path) -> None:
    older, first = save(tmp_path, 3)
    _, second = save(tmp_path, 12)
    path, expected, step = (tmp_path, second, 12) if of == "run" else (older, first, 3)
    loaded = load_encoder(path, CPU)
    images = torch.rand(2, 3, 32, 32)
    assert not loaded.network.training
    assert torch.equal(loaded.network(images), expected(images))
    assert loaded.loader == RECIPE.loader
    assert loaded.description == f"{path} at step {step}"


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no checkpoint"):
        load_encoder(tmp_path, CPU)


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_encoder(tmp_path / "absent", CPU)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"no weights")
    with pytest.raises(DataError, match="is no checkpoint"):
        load_encoder(tmp_path / "model.pt", CPU)
