"""What a recipe says about data: the mix, the augmentation, the loader."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator, model_validator


def _exact(value: Any) -> Any:
    """Read 0.1 as one tenth and "1/3" as a third, not as the nearest binary number."""
    try:
        return Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is no share; write 0.5 or 1/3") from None


Share = Annotated[Fraction, BeforeValidator(_exact), PlainSerializer(str), Field(gt=0, le=1)]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class SetConfig(_Config):
    """One shard set's part in the mix."""

    path: Path
    """Folder of the shard set."""
    share: Share | None = None
    """Its exact share of every batch; all sets have one, or none (then: by number of samples)."""
    balance: str | None = None
    """Tag axis whose known values share this set's part equally; samples unknown on it stay out."""


class MixConfig(_Config):
    """How the shard sets are mixed."""

    sets: Mapping[str, SetConfig] = Field(min_length=1)
    """Name in this run -> set."""
    epoch: Literal["total", "longest", "shortest"] | int = "total"
    """When an epoch ends: after as many samples as take part (total), when every sample has been seen
    (longest), when the first stratum has been seen whole (shortest), or after a number of samples."""

    @field_validator("epoch", mode="before")
    @classmethod
    def _is_an_epoch(cls, value: object) -> object:
        if value in ("total", "longest", "shortest") or (isinstance(value, int) and value > 0):
            return value
        raise ValueError("an epoch is total, longest, shortest or a number of samples")

    @model_validator(mode="after")
    def _shares_add_up(self) -> "MixConfig":
        shares = [one.share for one in self.sets.values()]
        given = [share for share in shares if share is not None]
        if given and len(given) < len(shares):
            without = next(name for name, one in self.sets.items() if one.share is None)
            raise ValueError(f"set {without} has no share and others have; give one to all or to none")
        if given and sum(given) != 1:
            parts = " + ".join(str(float(share)) for share in given)
            raise ValueError(f"shares {parts} add up to {float(sum(given))}, not 1; write thirds as 1/3")
        return self


class AugmentConfig(_Config):
    """What happens to an image on its way into a batch."""

    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip."""


class LoaderConfig(_Config):
    """How batches are made."""

    batch_size: int = Field(default=128, ge=1)
    """Samples of a global batch; ranks take equal slices of it."""
    image_size: int = Field(default=112, ge=16)
    """Side of the square images in a batch, in pixels; others are resized to it."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where batches end up; auto is the GPU if there is one."""
    threads: int = Field(default=2, ge=1)
    """CPU threads that decode."""
    prefetch: int = Field(default=2, ge=1)
    """Batches that are made ahead."""
