"""What a recipe says about training: the parts of `train.recipe.Recipe`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


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
    weights: Mapping[str, float] = {}
    """Set -> factor on the loss of its samples; 1 for those that are not named."""

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
        negative = [name for name, weight in self.weights.items() if weight < 0]
        if negative:
            raise ValueError(f"the weight of {negative[0]} is {self.weights[negative[0]]}; it should be 0 or more")
        return self

    @property
    def parameters(self) -> dict[str, float]:
        """What the kind's margin is made of."""
        return {name: getattr(self, name) for name in self.published[self.kind]}


class ContrastiveConfig(_Config):
    """Training without identities, as USynthFace does it: MoCo with a margin on the positive.

    The two images of a pair are the only ones taken for the same face.
    """

    queue: int = Field(default=32768, ge=1)
    """Keys of earlier batches that are the negatives."""
    momentum: float = Field(default=0.999, ge=0, lt=1)
    """Share of itself that the key encoder keeps in a step; the rest comes from the encoder."""
    temperature: float = Field(default=0.07, gt=0)
    """Divisor of the cosines."""
    margin: float = Field(default=0.1, ge=0)
    """Subtracted from the positive's cosine."""
    groups: int = Field(default=4, ge=1)
    """Parts of the global batch that batch norm takes its statistics of; keys are dealt to them in another order than
    queries (MoCo's shuffled BN, where a part is a GPU). A multiple of the number of processes."""


class OptimizerConfig(_Config):
    """How weights follow their gradients."""

    kind: Literal["sgd", "adamw"] = "sgd"
    """sgd for residual networks; adamw is what InsightFace trains its transformers with."""
    lr: float = Field(default=0.1, gt=0)
    """Peak learning rate."""
    lr_batch: int | None = Field(default=None, ge=1)
    """Global batch that lr is meant for, of which another batch takes its part or multiple; None takes lr as it is."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of sgd."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of adamw's two averages."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """Penalty on the weights of encoder and head: L2 with sgd, decoupled with adamw."""
    clip_norm: float = Field(default=5.0, gt=0)
    """Largest norm of the encoder's gradient."""


class ScheduleConfig(_Config):
    """The learning rate over the run, as a factor on its peak."""

    kind: Literal["step", "polynomial", "plateau"] = "polynomial"
    """After the warm-up: times gamma at milestones, (1 - progress)^power, or times gamma whenever the validation has
    not improved for longer than `patience`."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs in which the rate rises linearly from 0."""
    milestones: Sequence[float] = (22, 30, 36)
    """Epochs at which a step schedule multiplies by gamma."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    """Factor at each milestone or plateau."""
    power: float = Field(default=1.0, gt=0)
    """Exponent of the polynomial; 1 is InsightFace's linear decay."""
    patience: int = Field(default=10, ge=0)
    """Validations without improvement that a plateau schedule puts up with."""


class ValidationConfig(_Config):
    """Measuring the encoder while it trains, on people that are neither trained on nor tested on at the end."""

    bins: Mapping[str, Path] = {}
    """Name -> verification set (`.bin`), such as `facemix export bin` writes of a set that is kept apart."""
    every: float = Field(default=1.0, gt=0)
    """Epochs from one to the next; there is one at the end in any case."""


class TrainingConfig(_Config):
    """How long, how precise, how often it reports and saves."""

    epochs: float = Field(default=20, gt=0, lt=1e9)
    """Length of the run; what an epoch is, the mix says."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Type of activations under autocast; auto is bf16 where the hardware computes in it. fp16 scales the loss."""
    accumulate: int = Field(default=1, ge=1)
    """Parts in which a process takes its slice of a batch through the network, to need less memory. Batch norm is over
    a part."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Also keep an exponential moving average of the encoder, with this decay a step; it is what is then measured."""
    sync_batchnorm: bool = False
    """Take the statistics of batch norm over all processes; on GPUs only."""
    compile: bool = False
    """Compile the encoder with torch.compile."""
    log_every: int = Field(default=20, ge=1)
    """Steps between two step lines."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between two checkpoints; a stopped run also saves one."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the newest checkpoints stay, beside the best by the validation."""


Origin = Literal["authentic", "synthetic", "total"]


class Budget(_Config):
    """What may take part at most, as the rules of a challenge have it."""

    images: int | None = Field(default=None, ge=1)
    """Images."""
    identities: int | None = Field(default=None, ge=1)
    """Identities."""
