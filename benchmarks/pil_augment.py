"""RandAugment(4, 16) and AdaFace's augmentations as people write them today: PIL, one image, one operation at a time.

A peer to measure against, with the operations and magnitudes that `pipeline.augment` draws from.
"""

import random
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Picture: TypeAlias = Image.Image
Change = Callable[[Picture], Picture]
_BINS = 31
_DRAWN_BINS = 16
_NEAREST = Image.Resampling.NEAREST
_FILTERS = (
    Image.Resampling.NEAREST,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.BOX,
    Image.Resampling.LANCZOS,
)


def _signed(most: float, part: float) -> float:
    return random.choice((-1, 1)) * most * part


def _shear(image: Picture, part: float) -> Picture:
    return image.transform(image.size, Image.Transform.AFFINE, (1, _signed(0.3, part), 0, 0, 1, 0), _NEAREST)


def _translate(image: Picture, part: float) -> Picture:
    shift = int(_signed(150 / 331 * image.width, part))
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, shift, 0, 1, 0), _NEAREST)


def _enhance(enhancer: Callable[[Picture], ImageEnhance._Enhance]) -> Callable[[Picture, float], Picture]:
    return lambda image, part: enhancer(image).enhance(1 + _signed(0.9, part))


RAND_AUGMENT: Mapping[str, Callable[[Picture, float], Picture]] = {
    "Identity": lambda image, part: image,
    "ShearX": _shear,
    "TranslateX": _translate,
    "Rotate": lambda image, part: image.rotate(_signed(30, part), _NEAREST),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "Posterize": lambda image, part: ImageOps.posterize(image, 8 - round(4 * part)),
    "Solarize": lambda image, part: ImageOps.solarize(image, 255 * (1 - part)),  # type: ignore[arg-type]
    "AutoContrast": lambda image, part: ImageOps.autocontrast(image),
    "Equalize": lambda image, part: ImageOps.equalize(image),
    "Grayscale": lambda image, part: image.convert("L").convert("RGB"),
}


def _flip(image: Picture) -> Picture:
    return ImageOps.mirror(image) if random.random() < 0.5 else image


def rand_augment(image: Picture) -> Picture:
    """Flip half of the images, then change each by four of the operations."""
    image = _flip(image)
    for operation in random.choices(list(RAND_AUGMENT.values()), k=4):
        image = operation(image, random.randint(1, _DRAWN_BINS) / (_BINS - 1))
    return image


def adaface(image: Picture) -> Picture:
    """Flip half of the images; crop, coarsen and recolour a fifth each."""
    image = _flip(image)
    for change in (_crop, _low_resolution, _photometric):
        if random.random() < 0.2:
            image = change(image)
    return image


def _crop(image: Picture) -> Picture:
    area, ratio = random.uniform(0.2, 1), np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
    width = min(image.width, round(image.width * (area * ratio) ** 0.5))
    height = min(image.height, round(image.height * (area / ratio) ** 0.5))
    left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
    canvas = Image.new("RGB", image.size)
    canvas.paste(image.crop((left, top, left + width, top + height)), (left, top))
    return canvas


def _low_resolution(image: Picture) -> Picture:
    scale = random.uniform(0.2, 1)
    small = image.resize((int(image.width * scale), int(image.height * scale)), random.choice(_FILTERS))
    return small.resize(image.size, random.choice(_FILTERS))


def _photometric(image: Picture) -> Picture:
    enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    for enhancer in random.sample(enhancers, len(enhancers)):
        image = enhancer(image).enhance(random.uniform(0.5, 1.5))
    return image


AUGMENTATIONS: Mapping[str, Change] = {"randaugment": rand_augment, "adaface": adaface}
