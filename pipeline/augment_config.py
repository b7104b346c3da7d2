"""What may happen to an image on its way into a batch, and the published combinations by name."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]
"""Least and largest value of a uniform draw."""
Ends = TypeVar("Ends", Range, tuple[int, int])


def _within(least: float, most: float) -> AfterValidator:
    """Return a check that a range rises, and lies above `least` and at `most` at most."""

    def check(value: Ends) -> Ends:
        if not least < value[0] <= value[1] <= most:
            raise ValueError(f"{list(value)} should rise, lie above {least:g}, and not above {most:g}")
        return value

    return AfterValidator(check)


PartOfOne = Annotated[Range, _within(0, 1)]
Positive = Annotated[Range, _within(0, 1000)]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "none": {"flip": 0},
    "flip": {},
    "randaugment": {"randaugment": {}},
    "adaface": {"crop": 0.2, "low_resolution": 0.2, "photometric": 0.2},
    "vec2face": {"crop": 0.3, "low_resolution": 0.3, "photometric": 0.3, "erasing": 0.5},
}


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Operation(_Config):
    """Something that happens to some images; a plain number is its probability."""

    probability: Probability = 0.0
    """Share of the images that it happens to."""

    @model_validator(mode="before")
    @classmethod
    def _from_probability(cls, value: Any) -> Any:
        return {"probability": value} if isinstance(value, (int, float)) else value

    @model_validator(mode="after")
    def _has_probability(self) -> "Operation":
        if self.model_fields_set and "probability" not in self.model_fields_set:
            raise ValueError("it says how but not how often; add a probability, such as 0.2")
        return self


class Crop(Operation):
    """A random box stays where it is, the rest turns black (AdaFace, Kim et al., CVPR 2022)."""

    scale: PartOfOne = (0.2, 1.0)
    """Part of the area that stays."""
    ratio: Positive = (3 / 4, 4 / 3)
    """Width by height of the box, drawn evenly on a log scale."""


class LowResolution(Operation):
    """Down to a part of the size and back, both with a drawn interpolation (AdaFace)."""

    scale: PartOfOne = (0.2, 1.0)
    """Part of the side."""


class Photometric(Operation):
    """Brightness, contrast and saturation in a drawn order, each by a factor of 1 - x to 1 + x (AdaFace)."""

    brightness: float = Field(default=0.5, ge=0, le=1)
    """Largest change of brightness."""
    contrast: float = Field(default=0.5, ge=0, le=1)
    """Largest change of contrast."""
    saturation: float = Field(default=0.5, ge=0, le=1)
    """Largest change of saturation."""


class Affine(Operation):
    """A rotation, shift and scaling about the centre."""

    degrees: float = Field(default=10.0, ge=0, le=180)
    """Largest rotation either way."""
    translate: float = Field(default=0.1, ge=0, le=1)
    """Largest shift either way, as a part of the side."""
    scale: Positive = (0.9, 1.1)
    """Factor on the size."""


class Blur(Operation):
    """Gaussian blur."""

    sigma: Positive = (0.1, 2.0)
    """Standard deviation in pixels."""


class Jpeg(Operation):
    """Encoded as JPEG and decoded again."""

    quality: Annotated[tuple[int, int], _within(0, 100)] = (30, 90)
    """IJG quality, whole numbers of 1 to 100."""


class Erasing(Operation):
    """A random box turns mid-grey, which is 0 for the encoder (RandomErasing, Zhong et al., AAAI 2020)."""

    scale: PartOfOne = (0.02, 0.33)
    """Part of the area."""
    ratio: Positive = (0.3, 3.3)
    """Width by height of the box, drawn evenly on a log scale."""


class RandAugment(_Config):
    """So many operations drawn with replacement from 13, the magnitude of each drawn from a range of bins."""

    operations: int = Field(default=4, ge=1, le=8)
    """Operations an image."""
    magnitude: int = Field(default=16, ge=1, le=30)
    """Largest of the bins 1, 2, ... that are drawn; there are 31, from 0 (no change) to 30."""


class AugmentConfig(_Config):
    """What happens to an image, in this order; a name stands for a published combination (see `PRESETS`)."""

    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    affine: Affine = Affine()
    """Rotation, shift, scaling."""
    crop: Crop = Crop()
    """A random box, left in place on black."""
    low_resolution: LowResolution = LowResolution()
    """Down and up again."""
    photometric: Photometric = Photometric()
    """Brightness, contrast, saturation."""
    randaugment: RandAugment | None = None
    """RandAugment(4, 16) as the Fraunhofer and Cagliari systems use it: `{}` for just that."""
    grayscale: Operation = Operation()
    """No colour."""
    blur: Blur = Blur()
    """Gaussian blur."""
    jpeg: Jpeg = Jpeg()
    """JPEG recompression."""
    erasing: Erasing = Erasing()
    """A random grey box."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in PRESETS:
            raise ValueError(f"no augmentation is called {value}; there are {', '.join(PRESETS)}, or name operations")
        return PRESETS[value]
