"""What a recipe says about data: the mix and the loader. (How images change: `pipeline.augment_config`.)"""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator, model_validator

from pipeline.augment_config import AugmentConfig

Shares = Mapping[str, Fraction]
"""Set, or tag value -> its exact part."""


def _exact(value: Any) -> Fraction:
    """Read 0.1 and 10% as one tenth and "1/3" as a third, not as the nearest binary number."""
    text = str(value).strip()
    try:
        share = Fraction(text[:-1]) / 100 if text.endswith("%") else Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is no share; write 0.5, 50% or 1/3") from None
    if not 0 <= share <= 1:
        raise ValueError(f"share {value} lies outside 0 to 1")
    return share


def _positive(value: Any) -> Fraction:
    share = _exact(value)
    if not share:
        raise ValueError("a share of 0 takes no part; leave it out")
    return share


Share = Annotated[Fraction, PlainSerializer(str)]


def _schedule(value: Any) -> Any:
    """Read a share, or shares by the epoch that they begin with, as the latter."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        return {0: _positive(value)}
    if not all(str(epoch).isdecimal() for epoch in value):  # text where it comes from JSON
        raise ValueError(f"epochs {list(value)} of a share should be whole numbers")
    shares = {int(epoch): _exact(share) for epoch, share in value.items()}
    if list(shares) != sorted({0, *shares}):
        raise ValueError(f"epochs {list(shares)} of a share should begin with 0 and rise")
    if not any(shares.values()):
        raise ValueError("a share that is 0 in every epoch takes no part; leave the set out")
    return shares


def _plain_schedule(schedule: Mapping[int, Fraction] | None) -> Any:
    if schedule is None:
        return None
    return str(schedule[0]) if len(schedule) == 1 else {epoch: str(share) for epoch, share in schedule.items()}


Schedule = Annotated[Mapping[int, Fraction] | None, BeforeValidator(_schedule), PlainSerializer(_plain_schedule)]
"""First epoch -> share from then on."""


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Cap(_Config):
    """At most so many, and which; a plain number takes the first."""

    most: int = Field(ge=1)
    """How many stay."""
    by: str = "first"
    """first: in the order of the input; draw: a draw that the seed decides; else a column of the set's tables
    to rank by (of identities, the mean over their images)."""
    order: Literal["descending", "ascending"] = "descending"
    """Whether the highest values of the column stay, or the lowest."""


def _cap(value: Any) -> Any:
    return {"most": value} if isinstance(value, int) and not isinstance(value, bool) else value


def _balance(value: Any) -> Any:
    """Read an axis, or axes whose combinations count, as a mapping."""
    if isinstance(value, str):
        return {value: "equal"}
    if isinstance(value, (list, tuple)) and value:
        return {"/".join(map(str, value)): "equal"}
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is no balance; give an axis, several, or how each is split, or leave it out")
    return {str(axis): _split(str(axis), split) for axis, split in value.items()}


def _split(axis: str, split: Any) -> str | Shares:
    if split in ("equal", "natural"):
        return str(split)
    if not isinstance(split, Mapping):
        raise ValueError(f"{axis} is split {split!r}; write equal, natural, or a share for each value")
    shares = {str(tag): _positive(share) for tag, share in split.items()}
    _sum_to_one(shares, f"shares of {axis}")
    return shares


def _sum_to_one(shares: Mapping[Any, Fraction], what: str) -> None:
    if sum(shares.values()) != 1:
        parts = " + ".join(f"{float(share):.6g}" for share in shares.values())
        raise ValueError(f"{what} {parts} add up to {float(sum(shares.values())):.6g}, not 1; write thirds as 1/3")


class SetConfig(_Config):
    """One shard set's part in the mix."""

    path: Path
    """Folder of the shard set."""
    share: Schedule = None
    """Its exact share of every batch, or shares by epoch (`{0: 80%, 10: 50%}`); all sets have one, or none (then:
    by number of samples)."""
    balance: Annotated[Mapping[str, str | Mapping[str, Share]], BeforeValidator(_balance)] = {}
    """How the set's share is split over the values of tag axes, one axis inside the other: `ethnicity` or
    `[ethnicity, gender]` (each combination alike), or axis -> equal, natural (by number of samples), or value -> share.
    An axis may be a combination, `ethnicity/gender`. Samples of which an axis is unknown, or with a value that is
    not named, stay out."""
    identities: Annotated[Cap | None, BeforeValidator(_cap)] = None
    """How many identities take part, spread over the groups as their shares are."""
    images_per_identity: Annotated[Cap | None, BeforeValidator(_cap)] = None
    """How many images of each identity take part."""
    sampling: Literal["image", "identity"] = "image"
    """What is met equally often: each image, or each identity however many images it has. (Groups: `balance`.)"""
    augment: AugmentConfig | None = None
    """What happens to this set's images; the recipe's `augment` unless given."""


class MixConfig(_Config):
    """How the shard sets are mixed."""

    sets: Mapping[str, SetConfig] = Field(min_length=1)
    """Name in this run -> set."""
    epoch: Literal["total", "longest", "shortest"] | int = "total"
    """When an epoch ends: after as many samples as take part (total), when every stratum has been seen once (longest),
    when the first one has been (shortest), or after a number of samples. With `sampling: identity` a stratum has been
    seen when each of its identities has."""
    ramp: Literal["steps", "linear"] = "steps"
    """How shares by epoch change between the epochs given: at once, or evenly from epoch to epoch."""
    per_identity: int = Field(default=1, ge=1)
    """K images of one identity side by side in a batch: 2 for the pairs of contrastive training, K for P x K. (With
    `sampling: identity` the P are distinct while a pass over them lasts; else large identities may come twice.)"""
    labels: Literal["disjoint", "joined", "separate"] = "disjoint"
    """Whose a label is: sets share no identity (disjoint), equal names are one person (joined), or every set counts
    its own identities from 0 and has a head of its own (separate)."""
    window_shards: int | None = Field(default=None, ge=1)
    """For spinning and remote disks: shuffle shards, and samples only within so many of them. None shuffles all."""

    @field_validator("epoch", mode="before")
    @classmethod
    def _is_an_epoch(cls, value: object) -> object:
        if value in ("total", "longest", "shortest") or (
            isinstance(value, int) and not isinstance(value, bool) and value > 0
        ):
            return value
        raise ValueError("an epoch is total, longest, shortest or a number of samples")

    @model_validator(mode="after")
    def _shares_add_up(self) -> "MixConfig":
        without = [name for name, one in self.sets.items() if one.share is None]
        if without and len(without) < len(self.sets):
            raise ValueError(f"set {without[0]} has no share and others have; give one to all or to none")
        for epoch in self.turning_epochs():
            shares = self.shares_in(epoch)
            if shares is not None:
                _sum_to_one(shares, f"from epoch {epoch} on, shares" if epoch else "shares")
        if len(self.turning_epochs()) > 1 and self.epoch in ("longest", "shortest"):
            raise ValueError(f"epoch {self.epoch} has no length when shares change; use total or a number of samples")
        return self

    @model_validator(mode="after")
    def _order_fits_sampling(self) -> "MixConfig":
        by_identity = [name for name, one in self.sets.items() if one.sampling == "identity"]
        if self.window_shards is not None and (by_identity or self.per_identity > 1):
            what = "per_identity" if self.per_identity > 1 else f"sampling: identity of set {by_identity[0]}"
            raise ValueError(f"window_shards and {what} exclude each other: an identity's images lie in all shards")
        return self

    def turning_epochs(self) -> list[int]:
        """Return the epochs at which some set's share is given, 0 always among them, in rising order."""
        return sorted({0}.union(*(one.share or {} for one in self.sets.values())))

    def shares_in(self, epoch: int) -> Shares | None:
        """Return each set's share in an epoch, or None when sets count by their samples."""
        schedules = {name: one.share for name, one in self.sets.items() if one.share is not None}
        return {name: _share_in(schedule, epoch, self.ramp) for name, schedule in schedules.items()} or None

    def phases(self) -> list[tuple[int, Shares | None]]:
        """Return (first epoch, shares from then on) for each change of the shares, from epoch 0 on."""
        turning = self.turning_epochs()
        epochs = range(turning[-1] + 1) if self.ramp == "linear" else turning
        return [(epoch, self.shares_in(epoch)) for epoch in epochs]


def _share_in(schedule: Mapping[int, Fraction], epoch: int, ramp: str) -> Fraction:
    begun = max(first for first in schedule if first <= epoch)
    later = min((first for first in schedule if first > epoch), default=None)
    if ramp == "steps" or later is None:
        return schedule[begun]
    return schedule[begun] + (schedule[later] - schedule[begun]) * Fraction(epoch - begun, later - begun)


class LoaderConfig(_Config):
    """How batches are made."""

    batch_size: int = Field(default=128, ge=1)
    """Samples of a global batch; ranks take equal slices of it."""
    image_size: int = Field(default=112, ge=16)
    """Side of the square images in a batch, in pixels; others are resized to it."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where batches end up; auto is the GPU if there is one."""
    threads: int = Field(default=2, ge=1)
    """CPU threads that decode and augment."""
    prefetch: int = Field(default=2, ge=1)
    """Batches that are made ahead."""
    read_ahead: int = Field(default=4, ge=0)
    """Batches whose bytes the system is asked to read before they are needed."""
    cache: Path | None = None
    """Folder on a local disk for decoded images (37 kB for one of 112x112): filled in the first pass, then read."""
    check_shards: Literal["size", "hash"] = "size"
    """What is compared with the manifest when a shard is first needed; in any case one that changes later is found."""
    max_failures: int = Field(default=100, ge=0)
    """Images that may fail to decode while a run goes on; each is replaced by another of its stratum."""


def flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
