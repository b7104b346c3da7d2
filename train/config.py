"""A recipe: one YAML file that says everything about a training run."""

import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.augment_config import AugmentConfig
from pipeline.config import LoaderConfig, MixConfig, flatten
from shardgen.errors import UsageError


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderConfig(_Config):
    """The network from a face to its embedding."""

    backbone: Literal[
        "iresnet_mini",
        "iresnet18",
        "iresnet34",
        "iresnet50",
        "iresnet100",
        "iresnet200",
        "ir18",
        "ir34",
        "ir50",
        "ir101",
        "mobilefacenet",
        "vit_t",
        "vit_s",
        "vit_b",
    ] = "iresnet50"
    """InsightFace's; ir* are AdaFace's and CVLface's. iresnet_mini, for CPUs, has one block a stage, half the width,
    and starts at half the resolution."""
    embedding_size: int = Field(default=512, ge=2)
    """Length of an embedding."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the last linear layer; Fraunhofer's recipes use 0.4."""
    squeeze_excitation: bool | Literal["shortcut"] = False
    """Weigh channels in every block (IR-SE), or, as Vec2Face's training code does, only on each stage's shortcut."""
    pretrained: Path | None = None
    """Weights to start from: of InsightFace, AdaFace, CVLface, or a checkpoint of facemix."""

    @model_validator(mode="after")
    def _only_residual_networks_have_options(self) -> "EncoderConfig":
        if (self.dropout or self.squeeze_excitation) and not self.backbone.startswith("ir"):
            raise ValueError(f"{self.backbone} has no dropout and no squeeze_excitation; leave both out")
        return self


class HeadConfig(_Config):
    """The margin softmax that training classifies identities with.

    A parameter that is not given is the published one; one that the kind does not have stays null.
    """

    published: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "cosface": {"margin": 0.35},
        "arcface": {"margin": 0.5},
        "combined": {"m1": 1.0, "m2": 0.3, "m3": 0.2},
        "elastic_arc": {"margin": 0.5, "margin_std": 0.05},
        "elastic_arc_plus": {"margin": 0.5, "margin_std": 0.0175},
        "elastic_cos": {"margin": 0.35, "margin_std": 0.05},
        "elastic_cos_plus": {"margin": 0.35, "margin_std": 0.02},
        "adaface": {"margin": 0.4, "h": 0.333, "t_alpha": 0.01},
        "curricularface": {"margin": 0.5, "t_alpha": 0.01},
        "magface": {"l_a": 10.0, "u_a": 110.0, "l_margin": 0.45, "u_margin": 0.8, "lambda_g": 35.0},
    }

    kind: Literal[
        "cosface",
        "arcface",
        "combined",
        "elastic_arc",
        "elastic_arc_plus",
        "elastic_cos",
        "elastic_cos_plus",
        "adaface",
        "curricularface",
        "magface",
    ] = "cosface"
    """The margin; train/margins.py has their formulas and papers."""
    scale: float = Field(default=64.0, gt=0)
    """Factor s on the cosines."""
    margin: float | None = Field(default=None, ge=0)
    """Margin m: on the cosine (cosface, elastic_cos), on the angle in radians (the others)."""
    margin_std: float | None = Field(default=None, ge=0)
    """Standard deviation of an elastic margin."""
    m1: float | None = Field(default=None, gt=0)
    """Combined margin: factor on the angle."""
    m2: float | None = Field(default=None, ge=0)
    """Combined margin: added to the angle, in radians."""
    m3: float | None = Field(default=None, ge=0)
    """Combined margin: subtracted from the cosine."""
    h: float | None = Field(default=None, ge=0)
    """AdaFace: how far one standard deviation of the norms moves the margin."""
    t_alpha: float | None = Field(default=None, gt=0, le=1)
    """Share of a new batch in the running statistics (adaface: of norms, curricularface: of cosines)."""
    l_a: float | None = Field(default=None, gt=0)
    """MagFace: smallest norm told apart."""
    u_a: float | None = Field(default=None, gt=0)
    """MagFace: largest norm told apart, above l_a."""
    l_margin: float | None = Field(default=None, ge=0)
    """MagFace: margin at l_a, in radians."""
    u_margin: float | None = Field(default=None, ge=0)
    """MagFace: margin at u_a, in radians."""
    lambda_g: float | None = Field(default=None, ge=0)
    """MagFace: weight of the penalty on small norms; 35 in the paper, 20 in some of the authors' runs."""
    split: bool = False
    """Split the identities over the processes (PartialFC), instead of keeping all centres in each."""
    sampled: float = Field(default=1.0, gt=0, le=1)
    """Share of the identities that a step compares with, drawn anew each time; below 1 only if split."""

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, given: Any) -> Any:
        """Fill in the parameters of the kind; refuse those of others."""
        kind = str(given.get("kind", "cosface")) if isinstance(given, Mapping) else ""
        if kind not in cls.published:
            return given
        own, known = cls.published[kind], {name for each in cls.published.values() for name in each}
        given = {key: value for key, value in given.items() if value is not None or key not in known}
        foreign = sorted(known & given.keys() - own.keys())
        if foreign:
            raise ValueError(f"{kind} has no parameter {foreign[0]}; it has {', '.join(own)}")
        return {**own, **given}

    @model_validator(mode="after")
    def _consistent(self) -> "HeadConfig":
        if self.l_a is not None and self.u_a is not None and self.l_a >= self.u_a:
            raise ValueError(f"l_a is {self.l_a} and u_a {self.u_a}; u_a must be larger")
        if self.sampled < 1 and not self.split:
            raise ValueError(f"sampled is {self.sampled}, which needs split=true")
        return self

    @property
    def parameters(self) -> dict[str, float]:
        """What the kind's margin is made of."""
        return {name: getattr(self, name) for name in self.published[self.kind]}


class OptimizerConfig(_Config):
    """Stochastic gradient descent."""

    lr: float = Field(default=0.1, gt=0)
    """Peak learning rate of the global batch."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """L2 penalty on encoder and head."""
    clip_norm: float = Field(default=5.0, gt=0)
    """Largest norm of the encoder's gradient."""


class ScheduleConfig(_Config):
    """The learning rate over the run, as a factor on its peak."""

    kind: Literal["step", "polynomial"] = "polynomial"
    """After the warm-up: times gamma at milestones, or (1 - progress)^power."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs in which the rate rises linearly from 0."""
    milestones: Sequence[float] = (22, 30, 36)
    """Epochs at which a step schedule multiplies by gamma."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    """Factor at each milestone."""
    power: float = Field(default=1.0, gt=0)
    """Exponent of the polynomial; 1 is InsightFace's linear decay."""


class TrainingConfig(_Config):
    """How long, how precise, how often it reports and saves."""

    epochs: float = Field(default=20, gt=0)
    """Length of the run; what an epoch is, the mix says."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of activations under autocast; auto is bf16 where the hardware computes in it."""
    compile: bool = False
    """Compile the encoder with torch.compile."""
    log_every: int = Field(default=20, ge=1)
    """Steps between two step lines."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between two checkpoints; a stopped run also saves one."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the newest checkpoints stay."""


class Recipe(_Config):
    """Everything about a run."""

    name: str = Field(min_length=1)
    """Name of the run."""
    run: Path | None = None
    """Folder of the run; runs/<name> unless given."""
    seed: int = Field(default=0, ge=0)
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
    optimizer: OptimizerConfig = OptimizerConfig()
    """How it is trained."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over the run."""
    training: TrainingConfig = TrainingConfig()
    """How long it is trained."""

    @property
    def run_folder(self) -> Path:
        """Where the run's files go."""
        return self.run or Path("runs") / self.name


# What may change between stopping and resuming: it changes no batch. (Another device may round differently.)
FREE_TO_CHANGE = frozenset(
    {
        "run",
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


_PATH_OF_SET = re.compile(r"mix\.sets\..*\.path")  # the loader's state knows a set by its content


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `dotted.key=value` overrides.

    Raises `UsageError` with one line: the key, what is wrong with it, and the nearest known one.
    """
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
    for override in overrides:
        _apply(fields, override)
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise UsageError(f"{path}: {_one_line(_explain(error))}") from None


def differences(ours: Recipe, theirs: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting in which a saved recipe differs and that a resumed run must share."""
    now, saved = flatten(ours.model_dump(mode="json")), flatten(theirs)
    moved = {key for key in now.keys() & saved.keys() if _PATH_OF_SET.fullmatch(key)}
    return [
        f"{key} was {saved.get(key)}, now it is {now.get(key)}"
        for key in sorted((now.keys() | saved.keys()) - FREE_TO_CHANGE - moved)
        if now.get(key) != saved.get(key)
    ]


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _apply(fields: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"{override!r} is no override; write key=value, such as training.epochs=2")
    *parents, last = key.split(".")
    for parent in parents:
        fields = fields.setdefault(parent, {})
        if not isinstance(fields, dict):
            raise UsageError(f"{override!r}: {parent} holds a value, not further keys")
    try:
        fields[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{override!r}: the value is no YAML: {_one_line(error)}") from None


def _explain(error: ValidationError) -> str:
    """Return the first problem as one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = sorted(_keys_at(Recipe, first["loc"][:-1]))
        nearest = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.0)
        return f"unknown key {where}; the nearest known one is {nearest[0]} (known: {', '.join(known)})"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict) else f" (it is {first['input']!r})"
    return f"{where}: {message}{given}" if where else message


def _keys_at(model: Any, location: Sequence[str | int]) -> set[str]:
    """Return the keys that the configuration at a location of the recipe knows."""
    for part in location:
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = model.model_fields[str(part)].annotation
        else:  # a mapping: whatever the key, its values are of one type
            model = typing.get_args(model)[-1]
    if isinstance(model, types.UnionType):
        model = typing.get_args(model)[0]
    return set(model.model_fields)
