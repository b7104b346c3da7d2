"""What a conversion needs to know, apart from its input and its output folder."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from shardgen.images import MAX_PIXELS, Check, ImageOptions

Origin = Literal["authentic", "synthetic"]


class ShardConfig(BaseModel):
    """Everything that decides the bytes of a shard set, and how they are made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    """Name of the data set, as recipes, plans and reports show it."""
    origin: Origin
    """Whether the faces are photographs of people or were generated."""
    shard_samples: int = Field(default=10_000, ge=1)
    """Input records of one shard; at 7 KB a face a shard is about 80 MB."""
    order: Literal["shuffled", "source"] = "shuffled"
    """Spread identities over the shards by a seeded shuffle, or keep the order of the input."""
    seed: int = Field(default=0, ge=0)
    """Seed of the shuffle."""
    check: Check = "decode"
    """Decode every image, look at its header only, or take it by its first bytes."""
    size: int | None = Field(default=None, ge=8, le=4096)
    """Width and height in pixels that every image is scaled to; None leaves them as they are."""
    quality: int = Field(default=95, ge=1, le=100)
    """JPEG quality of what has to be encoded again; other formats become PNG."""
    exif: Literal["apply", "refuse"] = "apply"
    """Turn images upright that EXIF says are stored sideways, or reject them."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Images of more pixels are rejected before they are decoded."""
    workers: int = Field(default=1, ge=1)
    """Processes that convert shards; the bytes do not depend on it."""
    max_rejected: float = Field(default=0.01, ge=0, le=1)
    """Largest share of rejected records (0-1) with which the set is still published."""

    def identity_of_job(self) -> dict[str, str | int]:
        """Return the options that decide the bytes; a restart must repeat exactly these."""
        return {
            name: value if value is not None else "" for name, value in self.model_dump().items() if name not in _HOW
        }

    def image_options(self) -> ImageOptions:
        """Return what is done with image bytes."""
        return ImageOptions(self.check, self.size, self.quality, self.exif, self.max_pixels)


_HOW = ("workers", "max_rejected")
