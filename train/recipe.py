"""A recipe: one YAML file that says everything about a training run."""

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.augment_config import AugmentConfig
from pipeline.config import LoaderConfig, MixConfig, flatten
from shardgen.errors import UsageError
from train.config import (
    Budget,
    ContrastiveConfig,
    EncoderConfig,
    HeadConfig,
    OptimizerConfig,
    Origin,
    ScheduleConfig,
    TrainingConfig,
    ValidationConfig,
)


class Recipe(BaseModel):
    """Everything about a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    """Name of the run."""
    run: Path | None = None
    """Folder of the run; runs/<name> unless given."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of order, augmentation and initial weights."""
    mix: MixConfig
    """Which sets, in which shares."""
    augment: AugmentConfig = AugmentConfig()
    """What happens to the images."""
    loader: LoaderConfig = LoaderConfig()
    """How batches are made."""
    encoder: EncoderConfig = EncoderConfig()
    """What is trained."""
    head: HeadConfig = HeadConfig()
    """What it is trained against."""
    contrastive: ContrastiveConfig | None = None
    """Train on pairs (`mix.per_identity: 2`) instead of identities, without a head."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How it is trained."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over the run."""
    training: TrainingConfig = TrainingConfig()
    """How long it is trained."""
    validation: ValidationConfig = ValidationConfig()
    """What it is measured on meanwhile."""
    budget: Mapping[Origin, Budget] = {}
    """Origin, or total -> what its sets may give at most; a mix that takes more is refused."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "Recipe":
        strangers = [name for name in self.head.weights if name not in self.mix.sets]
        if strangers:
            raise ValueError(f"head.weights has {strangers[0]}, the mix has {', '.join(self.mix.sets)}")
        if self.schedule.kind == "plateau" and not self.validation.bins:
            raise ValueError("schedule.kind is plateau, which needs validation.bins")
        if self.contrastive is not None:
            self._check_contrastive(self.contrastive)
        return self

    def _check_contrastive(self, contrastive: ContrastiveConfig) -> None:
        if self.mix.per_identity != 2:
            raise ValueError(f"contrastive training takes pairs; mix.per_identity is {self.mix.per_identity}, not 2")
        if "head" in self.model_fields_set and self.head != HeadConfig():
            raise ValueError("contrastive training has no head; leave head or contrastive out")
        if self.training.accumulate > 1 or self.training.sync_batchnorm:
            raise ValueError(
                "contrastive training has contrastive.groups; leave training.accumulate and sync_batchnorm out"
            )
        pairs = self.loader.batch_size // 2
        if pairs % contrastive.groups or pairs == contrastive.groups:
            raise ValueError(
                f"{pairs} pairs of a batch do not make contrastive.groups {contrastive.groups} of two or more each"
            )

    @property
    def peak_lr(self) -> float:
        """Highest learning rate of the run."""
        lr, lr_batch = self.optimizer.lr, self.optimizer.lr_batch
        return lr if lr_batch is None else lr * self.loader.batch_size / lr_batch

    @property
    def run_folder(self) -> Path:
        """Where the run's files go."""
        return self.run or Path("runs") / self.name


# What may change between stopping and resuming: it changes no batch. (Another device may round differently.)
FREE_TO_CHANGE = frozenset(
    {
        "name",
        "run",
        "encoder.pretrained",
        "loader.device",
        "loader.threads",
        "loader.prefetch",
        "loader.read_ahead",
        "loader.cache",
        "loader.check_shards",
        "loader.max_failures",
        "training.compile",
        "training.log_every",
        "training.checkpoint_every",
        "training.keep_checkpoints",
    }
)


Model = TypeVar("Model", bound=BaseModel)
_PATH_OF_DATA = re.compile(r"mix\.sets\..*\.path|validation\.bins\..*")  # states know data by their content


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `dotted.key=value` overrides.

    Raises `UsageError` with one line: the key, what is wrong with it, and the nearest known one.
    """
    return make_recipe(read_fields(path), [parse_override(one) for one in overrides], str(path))


def read_fields(path: Path) -> dict[str, Any]:
    """Return what a YAML file says; raise `UsageError` when it is none, or no mapping."""
    try:
        fields = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}; give the path of a recipe, such as recipes/first_light.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no YAML: {_one_line(error)}") from None
    if not isinstance(fields, dict):
        raise UsageError(f"{path} holds no recipe; it needs keys such as name and mix")
    return fields


def parse_override(text: str) -> tuple[str, Any]:
    """Return the key and the value of `dotted.key=value`; raise `UsageError` when it is none."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"{text!r} is no override; write key=value, such as training.epochs=2")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"{text!r}: the value is no YAML: {_one_line(error)}") from None


def make_recipe(fields: Mapping[str, Any], overrides: Iterable[tuple[str, Any]], origin: str) -> Recipe:
    """Return the recipe of some fields with (dotted key, value) overrides; null leaves a section out, such as a set.

    Raises `UsageError` with one line that names the origin.
    """
    changed = dict(deepcopy(fields))
    for key, value in overrides:
        _apply(changed, key, deepcopy(value), origin)
    return validated(Recipe, changed, origin)


def _apply(fields: dict[str, Any], key: str, value: Any, origin: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        fields = fields.setdefault(parent, {})
        if not isinstance(fields, dict):
            raise UsageError(f"{origin}: {key}: {parent} holds a value, not further keys")
    if value is None and isinstance(fields.get(last), dict):
        del fields[last]
    else:
        fields[last] = value


def validated(model: type[Model], fields: Any, origin: str) -> Model:
    """Return a configuration; raise `UsageError` with one line that names the origin and the first problem."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise UsageError(f"{origin}: {_one_line(_explain(error, model))}") from None


def differing_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that all processes of a run, and all its continuations, have to share."""
    flat = flatten({**recipe.model_dump(mode="json"), "budget": {}})
    return {key: value for key, value in flat.items() if key not in FREE_TO_CHANGE and not _PATH_OF_DATA.fullmatch(key)}


def differences(ours: Recipe, theirs: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting in which a saved recipe differs and that a resumed run must share."""
    now, saved = (flatten({**fields, "budget": {}}) for fields in (ours.model_dump(mode="json"), theirs))
    moved = {key for key in now.keys() & saved.keys() if _PATH_OF_DATA.fullmatch(key)}
    return [
        f"{key} was {saved.get(key)}, now it is {now.get(key)}"
        for key in sorted((now.keys() | saved.keys()) - FREE_TO_CHANGE - moved)
        if now.get(key) != saved.get(key)
    ]


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first problem as one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = sorted(_keys_at(model, first["loc"][:-1]))
        nearest = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.0)
        return f"unknown key {where}; the nearest known one is {nearest[0]} (known: {', '.join(known)})"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict) else f" (it is {first['input']!r})"
    return f"{where}: {message}{given}" if where else message


def _keys_at(model: Any, location: Sequence[str | int]) -> set[str]:
    """Return the keys that the configuration at a location of the recipe knows."""
    for part in location:
        if isinstance(model, types.UnionType):
            model = typing.get_args(model)[0]
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = model.model_fields[str(part)].annotation
        else:  # a mapping: whatever the key, its values are of one type
            model = typing.get_args(model)[-1]
    if isinstance(model, types.UnionType):
        model = typing.get_args(model)[0]
    return set(model.model_fields)
