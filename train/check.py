"""`facemix train --check`: what a run would be made of, and what of that is not there or not allowed."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from pipeline import plan_report
from pipeline.catalog import open_catalog
from pipeline.loader import FaceLoader, resolve_device
from pipeline.plan import Plan, open_plan
from shardgen.errors import DataError, UsageError
from train import checkpoint
from train.budget import check_budget, taken
from train.distributed import World
from train.objective import make_objective
from train.recipe import Recipe
from train.updates import Updater
from train.validation import Validation
from train.weights import load_weights

_CPU = torch.device("cpu")


def check(recipe: Recipe) -> Iterator[str]:
    """Yield what a run would be made of; raise as training would of its data and recipe, naming every set at fault."""
    device = resolve_device(recipe.loader.device)
    _open_each(recipe)
    plan = open_plan(recipe.mix, recipe.seed, recipe.loader.batch_size)
    yield from plan_report.lines(plan)
    check_budget(recipe.budget, plan)
    for origin, given in taken(plan).items():
        yield f"{origin}: {given.identities} identities, {given.images} images{_limits(recipe, origin)}"
    objective = make_objective(recipe, plan.num_classes, plan.set_names, World(), device)
    Updater(objective, recipe, World(), device)
    encoder = objective.encoder
    if recipe.encoder.pretrained is not None:
        load_weights(encoder, recipe.encoder.pretrained)
    yield f"{recipe.encoder.backbone}: {_millions(encoder)} million weights; {_trained_against(recipe, plan)}"
    validation = Validation(recipe.validation, recipe.loader, World(), device)
    for name, accuracy in validation.measure(encoder).items():
        yield f"validation: {name}, {validation.num_pairs[name]} pairs, {accuracy:.4f} before training"
    loader = FaceLoader(plan, recipe.augment, recipe.loader, _CPU)
    yield f"the first batch: {len(next(loader).labels)} images, decoded and augmented"
    loader.close()
    yield _standing(recipe.run_folder)


def _open_each(recipe: Recipe) -> None:
    """Look at every set before the first is missed: each may be hours away."""
    faults = []
    for name, one in recipe.mix.sets.items():
        try:
            open_catalog({name: one.path})
        except (DataError, UsageError) as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise DataError(f"{len(faults)} of {len(recipe.mix.sets)} sets cannot be used: {'; '.join(faults)}")


def _limits(recipe: Recipe, origin: str) -> str:
    limits = recipe.model_dump()["budget"].get(origin, {})
    parts = [f"{what} {limit}" for what, limit in limits.items() if limit is not None]
    return f"; its budget: {', '.join(parts)}" if parts else ""


def _millions(network: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.1f}"


def _trained_against(recipe: Recipe, plan: Plan) -> str:
    if recipe.contrastive is not None:
        return f"trained against a queue of {recipe.contrastive.queue} keys"
    weights = sum(plan.num_classes) * recipe.encoder.embedding_size
    return f"trained against {recipe.head.kind} over {sum(plan.num_classes)} identities, {weights / 1e6:.1f} million"


def _standing(run: Path) -> str:
    found = checkpoint.all_in(run / "checkpoints")
    return f"{run}: holds a run, {found[-1].name} is its newest; --resume goes on" if found else f"{run}: would begin"
