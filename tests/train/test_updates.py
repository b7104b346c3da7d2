"""One step of the optimiser: whatever way it is made, it is the same step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.loader import Batch, normalised
from tests.processes import in_two_processes
from train.config import HeadConfig
from train.distributed import World, join, leave
from train.heads import MarginHead
from train.objective import Objective, Recogniser, make_objective
from train.recipe import Recipe
from train.updates import Updater

CPU = torch.device("cpu")
SIZE, IDENTITIES = 16, 5

pytestmark = pytest.mark.usefixtures("one_thread")


def recipe_of(**parts: Any) -> Recipe:
    fields = {
        "name": "step",
        "mix": {"sets": {"a": {"path": "a"}, "b": {"path": "b"}}},
        "loader": {"batch_size": 12, "image_size": SIZE},
        "encoder": {"backbone": "iresnet_mini", "embedding_size": 8},
        "head": {"scale": 8},
        "training": {"precision": "fp32"},
        "optimizer": {"lr": 0.1, "weight_decay": 0},
    }
    for name, part in parts.items():
        fields[name] = {**fields[name], **part}  # type: ignore[dict-item]
    return Recipe.model_validate(fields)


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (12, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = torch.randint(0, IDENTITIES, (12,), generator=generator)
    return Batch(images, labels, torch.arange(12), np.arange(12) % 2, {})


def plain(recipe: Recipe, kind: str = "cosface") -> Objective:
    """An encoder without batch norm, so that parts of a batch are nothing else than the batch."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 8))
    head = MarginHead(HeadConfig.model_validate({"kind": kind, "scale": 8}), 8, IDENTITIES)
    heads = nn.ModuleList([head])
    weights = [recipe.head.weights.get(name, 1) for name in recipe.mix.sets]
    return Objective(encoder, heads, Recogniser(encoder, heads, weights))


def stepped(recipe: Recipe, steps: int = 3) -> tuple[Objective, list[float]]:
    objective = plain(recipe)
    updater = Updater(objective, recipe, World(), CPU)
    return objective, [updater.step(batch(step), recipe.optimizer.lr).item() for step in range(steps)]


def weights_of(objective: Objective) -> dict[str, torch.Tensor]:
    return dict(objective.loss.state_dict())


@pytest.mark.parametrize("parts", [2, 5, 12])
def test_a_batch_in_parts_makes_the_step_of_the_whole(parts: int) -> None:
    whole, losses = stepped(recipe_of())
    cut, of_parts = stepped(recipe_of(training={"accumulate": parts}))
    assert of_parts == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(weights_of(cut), weights_of(whole), rtol=1e-4, atol=1e-6)


def test_sgd_is_torch_s_own_from_the_first_step_on() -> None:
    recipe = recipe_of(optimizer={"weight_decay": 1e-2})
    ours, _ = stepped(recipe)
    theirs = plain(recipe)
    sgd = torch.optim.SGD(theirs.parameters, lr=0.1, momentum=0.9, weight_decay=1e-2)
    for step in range(3):
        one = batch(step)
        sgd.zero_grad()
        theirs.loss(normalised(one.images), one.labels, one.sets).backward()
        nn.utils.clip_grad_norm_(theirs.encoder.parameters(), recipe.optimizer.clip_norm)
        sgd.step()
    torch.testing.assert_close(weights_of(ours), weights_of(theirs))


def test_the_loss_of_a_set_counts_as_much_as_the_recipe_says() -> None:
    one = batch()
    images = normalised(one.images)

    def loss(**weights: float) -> float:
        found: torch.Tensor = plain(recipe_of(head={"weights": weights})).loss(images, one.labels, one.sets)
        return found.item()

    assert loss(a=2, b=0.5) == pytest.approx(2 * loss(b=0) + 0.5 * loss(a=0), rel=1e-6)
    assert loss(a=1, b=1) == loss()
    assert loss(a=0, b=0) == 0


def moves(updater: Updater, objective: Objective, step: int) -> bool:
    """Take a step; return whether any weight moved, which must be where the scale stays as it is."""
    before = [one.detach().clone() for one in objective.parameters]
    scale = updater.state_dict()["scaler"]["scale"]
    updater.step(batch(step), 0.1)
    stays: bool = updater.state_dict()["scaler"]["scale"] == scale
    moved = [not torch.equal(old, new) for old, new in zip(before, objective.parameters, strict=True)]
    assert all(moved) if stays else not any(moved)
    return stays


@contextmanager
def multiplied_gradient(parameter: nn.Parameter, factor: float) -> Iterator[None]:
    hook = parameter.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]
    yield
    hook.remove()


def settle(updater: Updater, objective: Objective) -> None:
    """The scale begins high, and halves until nothing overflows."""
    while not moves(updater, objective, 0):
        pass


def test_in_fp16_a_step_whose_gradients_overflow_is_not_taken() -> None:
    recipe = recipe_of(training={"precision": "fp16"})
    objective = plain(recipe)
    updater = Updater(objective, recipe, World(), CPU)
    settle(updater, objective)
    last = objective.parameters[-1]
    for overflows in (False, True, True, False):
        with multiplied_gradient(last, torch.inf if overflows else 1):
            assert moves(updater, objective, 1) != overflows
    assert all(value.isfinite().all() for value in weights_of(objective).values())


def test_in_fp16_the_very_first_step_may_be_one_that_is_not_taken() -> None:
    recipe = recipe_of(training={"precision": "fp16"})
    objective = plain(recipe)
    updater = Updater(objective, recipe, World(), CPU)
    with multiplied_gradient(objective.parameters[-1], torch.inf):
        assert not moves(updater, objective, 0)
    settle(updater, objective)
    assert all(value.isfinite().all() for value in weights_of(objective).values())


def overflow_in_turns(rank: int) -> None:
    """With a split head, the centres of one rank or both get an infinite gradient: then neither may move."""
    world = World(rank, 2, rank)
    join(world, CPU)
    torch.manual_seed(0)
    recipe = recipe_of(training={"precision": "fp16"}, head={"split": True})
    objective = make_objective(recipe, [IDENTITIES], ["a", "b"], world, CPU)
    updater = Updater(objective, recipe, world, CPU)
    settle(updater, objective)
    centres = objective.parameters[-1]
    for overflowing in ((), (1,), (0, 1), ()):
        with multiplied_gradient(centres, torch.inf if rank in overflowing else 1):
            assert moves(updater, objective, rank) == (not overflowing)
    leave(world)


def test_where_the_gradients_of_one_process_overflow_none_takes_the_step() -> None:
    in_two_processes(overflow_in_turns)


@pytest.mark.parametrize(
    ("backbone", "precision"),
    [("iresnet_mini", "fp32"), ("iresnet_mini", "bf16"), ("iresnet_mini", "fp16"), ("mobilefacenet", "bf16")],
)
def test_every_precision_trains_real_encoders(backbone: str, precision: str) -> None:
    recipe = recipe_of(
        training={"precision": precision},
        encoder={"backbone": backbone},
        loader={"batch_size": 12, "image_size": 112 if backbone == "mobilefacenet" else 32},
    )
    torch.manual_seed(0)
    objective = make_objective(recipe, [IDENTITIES], ["a", "b"], World(), CPU)
    updater = Updater(objective, recipe, World(), CPU)
    size = recipe.loader.image_size
    images = torch.randint(0, 256, (12, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    one = Batch(images, torch.arange(12) % IDENTITIES, torch.arange(12), np.arange(12) % 2, {})
    losses = [updater.step(one, 0.05).item() for _ in range(16)]  # in fp16, the first are not taken
    assert losses[-1] < losses[0]
    assert {value.dtype for value in objective.parameters} == {torch.float32}
