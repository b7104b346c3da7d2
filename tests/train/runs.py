"""Small runs, and when two are the same."""

from pathlib import Path
from typing import Any

import torch

from train import checkpoint
from train.metrics import read_metrics
from train.recipe import Recipe


def copy_of(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with dotted keys changed, `__` for the dot."""
    fields = recipe.model_dump(mode="json")
    for key, value in changes.items():
        *parents, last = key.split("__")
        inner = fields
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return Recipe.model_validate(fields)


def final_state(run: Path) -> checkpoint.State:
    return checkpoint.load(checkpoint.find(run))


def columns(run: Path) -> list[tuple[int, float, float, str]]:
    return [(one.step, one.loss, one.lr, one.batch_crc32) for one in read_metrics(run)]


def assert_same_weights(run: Path, other: Path) -> None:
    ours, theirs = final_state(run), final_state(other)
    assert ours["step"] == theirs["step"]
    assert ours["loader"] == theirs["loader"]
    assert ours["progress"] == theirs["progress"]
    groups = [state["updates"]["optimizer"].pop("param_groups") for state in (ours, theirs)]
    assert groups[0] == groups[1]
    for part in ("encoder", "heads", "updates"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


def assert_same_run(run: Path, other: Path) -> None:
    """Bit for bit: weights, momenta, position, and what was reported."""
    assert_same_weights(run, other)
    assert columns(run) == columns(other)
