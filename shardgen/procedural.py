"""Drawn faces with known identities and groups, for the demo, tests and benchmarks.

An identity is a set of proportions and colours, drawn once from its number; an image adds pose, light,
expression and background. Four groups differ in colouring and proportions. The "render" style, which
stands for a generator's, is smooth and saturated where "photo" has grain and muted colours.
Everything is a function of (seed, identity, image), so the same call always draws the same face.
"""

import csv
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from shardgen.images import Rgb
from shardgen.recordio import write_insightface

GROUPS = ("north", "east", "south", "west")
SIZE = 112
Style = Literal["photo", "render"]
_CANVAS = 2 * SIZE  # drawn at twice the size and reduced, which smooths the edges
_SKIN = {"north": (231, 190, 170), "east": (224, 177, 134), "south": (120, 78, 56), "west": (176, 124, 92)}
_HAIR = ((30, 22, 18), (70, 45, 28), (120, 80, 45), (190, 150, 90), (95, 95, 95), (140, 55, 30))
_IRIS = ((60, 40, 25), (80, 110, 70), (70, 100, 150), (40, 30, 20))

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class _Face:
    """What stays the same over an identity's images; lengths in pixels of the canvas."""

    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    half_width: int
    half_height: int
    eye_gap: int
    eye_width: int
    eye_height: int
    brow_lift: int
    brow_thickness: int
    nose_length: int
    nose_width: int
    mouth_width: int
    mouth_drop: int
    hairline: float
    long_hair: bool
    beard: bool
    glasses: bool


def group_of(identity: int) -> str:
    """Return the group an identity belongs to; consecutive identities take turns."""
    return GROUPS[identity % len(GROUPS)]


def _face_of(seed: int, identity: int) -> _Face:
    rng = np.random.default_rng([seed, identity])
    group = group_of(identity)
    number = GROUPS.index(group)

    def length(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    return _Face(
        skin=_shifted(_SKIN[group], rng, 14),
        hair=_shifted(_HAIR[rng.integers(len(_HAIR))], rng, 10),
        iris=_shifted(_IRIS[rng.integers(len(_IRIS))], rng, 10),
        lips=_shifted((170, 80, 80), rng, 25),
        half_width=length(50, 68) + number,
        half_height=length(72, 88) - number,
        eye_gap=length(20, 32),
        eye_width=length(9, 16),
        eye_height=length(4, 9),
        brow_lift=length(11, 20),
        brow_thickness=length(2, 7),
        nose_length=length(20, 38),
        nose_width=length(6, 15),
        mouth_width=length(14, 30),
        mouth_drop=length(36, 52),
        hairline=float(rng.uniform(0.35, 0.75)),
        long_hair=bool(rng.random() < 0.4),
        beard=bool(rng.random() < 0.25),
        glasses=bool(rng.random() < 0.25),
    )


def _shifted(colour: Colour, rng: np.random.Generator, amount: int) -> Colour:
    red, green, blue = np.clip(np.array(colour) + rng.integers(-amount, amount + 1, 3), 0, 255).tolist()
    return red, green, blue


def draw_face(seed: int, identity: int, image: int, style: Style = "photo") -> Rgb:
    """Return `[112, 112, 3] uint8` RGB: image number `image` of an identity."""
    face = _face_of(seed, identity)
    rng = np.random.default_rng([seed, identity, image + 1])
    canvas = _background(rng, style)
    yaw, pitch = rng.uniform(-14, 14), rng.uniform(-8, 8)
    _draw_head(canvas, face)
    _draw_features(canvas, face, int(yaw), int(pitch), rng)
    turn = cv2.getRotationMatrix2D((SIZE, SIZE), rng.uniform(-10, 10), rng.uniform(0.92, 1.08))
    turn[:, 2] += rng.uniform(-6, 6, 2)
    canvas = cv2.warpAffine(canvas, turn, (_CANVAS, _CANVAS), borderMode=cv2.BORDER_REFLECT)
    small = cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return _lit(small, rng, style)


def _background(rng: np.random.Generator, style: Style) -> Rgb:
    base = rng.integers(40, 200, 3)
    canvas = np.empty((_CANVAS, _CANVAS, 3), np.uint8)
    canvas[:] = base
    if style == "photo":
        for _ in range(6):
            corner, far = rng.integers(0, _CANVAS, (2, 2)).tolist()
            cv2.rectangle(canvas, corner, far, rng.integers(30, 220, 3).tolist(), -1)
        canvas = cv2.GaussianBlur(canvas, (0, 0), 6).astype(np.uint8)
    return canvas


def _draw_head(canvas: Rgb, face: _Face) -> None:
    middle = SIZE
    hair_height = face.half_height + (60 if face.long_hair else 10)
    _ellipse(
        canvas,
        (middle, middle + (40 if face.long_hair else -6)),
        (face.half_width + 12, hair_height),
        face.hair,
    )
    cv2.rectangle(canvas, (middle - 24, middle + 60), (middle + 24, _CANVAS), _darker(face.skin, 0.8), -1)
    _ellipse(canvas, (middle, middle + 8), (face.half_width, face.half_height), face.skin)
    fringe = int(face.half_height * face.hairline)
    cv2.ellipse(
        canvas,
        (middle, middle + 8 - fringe),
        (face.half_width, face.half_height - fringe),
        0,
        180,
        360,
        face.hair,
        -1,
    )
    if face.beard:
        cv2.ellipse(
            canvas,
            (middle, middle + 30),
            (face.half_width - 6, face.half_height - 24),
            0,
            20,
            160,
            face.hair,
            -1,
        )


def _draw_features(canvas: Rgb, face: _Face, yaw: int, pitch: int, rng: np.random.Generator) -> None:
    middle, eye_line = SIZE + yaw, SIZE - 6 + pitch
    openness, smile = rng.uniform(0.5, 1.2), int(rng.integers(-8, 13))
    for side in (-1, 1):
        x = middle + side * (face.eye_gap - side * yaw // 5)
        height = max(2, int(face.eye_height * openness))
        _ellipse(canvas, (x, eye_line), (face.eye_width, height), (240, 238, 235))
        _ellipse(canvas, (x + yaw // 6, eye_line), (max(2, face.eye_width // 2), height), face.iris)
        brow = eye_line - face.brow_lift
        cv2.line(
            canvas,
            (x - face.eye_width - 2, brow),
            (x + face.eye_width + 2, brow + side * 2),
            face.hair,
            face.brow_thickness,
        )
        if face.glasses:
            cv2.circle(canvas, (x, eye_line), face.eye_width + 8, (25, 25, 25), 3)
    nose = eye_line + face.nose_length
    dark = _darker(face.skin, 0.7)
    cv2.line(canvas, (middle + yaw // 3, eye_line + 4), (middle + yaw // 2, nose), dark, 2)
    cv2.ellipse(canvas, (middle + yaw // 2, nose), (face.nose_width, 5), 0, 0, 180, dark, 3)
    mouth = (middle, eye_line + face.mouth_drop + face.nose_length // 3)
    _ellipse(canvas, mouth, (face.mouth_width, max(3, abs(smile) // 2 + 2)), face.lips)
    start, end = (0, 180) if smile > 0 else (180, 360)
    cv2.ellipse(canvas, mouth, (face.mouth_width, abs(smile) + 2), 0, start, end, _darker(face.lips, 0.6), 2)


def _ellipse(canvas: Rgb, centre: tuple[int, int], axes: tuple[int, int], colour: Colour) -> None:
    cv2.ellipse(canvas, centre, axes, 0, 0, 360, colour, -1)


def _darker(colour: Colour, factor: float) -> Colour:
    red, green, blue = (int(channel * factor) for channel in colour)
    return red, green, blue


def _lit(image: npt.NDArray[np.uint8], rng: np.random.Generator, style: Style) -> Rgb:
    """Apply light from a side, and the style's look."""
    ramp = np.linspace(-1, 1, SIZE)
    direction = rng.uniform(-0.25, 0.25, 2)
    light = rng.uniform(0.75, 1.2) + direction[0] * ramp[:, None] + direction[1] * ramp[None, :]
    lit = image.astype(np.float64) * light[..., None]
    grey = lit.mean(-1, keepdims=True)
    if style == "photo":
        lit = grey + 0.8 * (lit - grey) + rng.normal(0, 6, lit.shape)
    else:
        lit = cv2.GaussianBlur(grey + 1.5 * (lit - grey), (0, 0), 0.9)
    return np.asarray(np.clip(lit, 0, 255), np.uint8)


def encode(image: Rgb, quality: int = 95) -> bytes:
    """Return the image as a JPEG file."""
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return bytes(data)


def draw_recordio(folder: Path, seed: int, identities: range, images: int, style: Style = "photo") -> None:
    """Write faces as InsightFace's `train.rec`, with `identities.csv` beside it; labels count from 0."""
    write_insightface(folder, [_faces(seed, identity, images, style) for identity in identities])
    _write_tags(folder / "identities.csv", [str(label) for label in range(len(identities))], identities)


def draw_folder(folder: Path, seed: int, identities: range, images: range, style: Style = "photo") -> None:
    """Write faces as `<folder>/images/<identity>/<image>.jpg`, with `identities.csv` beside `images`."""
    names = [f"{identity:05d}" for identity in identities]
    for name, identity in zip(names, identities, strict=True):
        (folder / "images" / name).mkdir(parents=True)
        for image in images:
            face = encode(draw_face(seed, identity, image, style))
            (folder / "images" / name / f"{image}.jpg").write_bytes(face)
    _write_tags(folder / "identities.csv", names, identities)


def draw_bin(path: Path, seed: int, identities: Sequence[int], images: int, pairs: int) -> None:
    """Write a verification set: `pairs` pairs, half of one identity, in ten folds of both kinds."""
    rng = np.random.default_rng([seed, pairs])
    bins: list[bytes] = []
    same = [pair // (pairs // 20) % 2 == 0 for pair in range(pairs)]
    for genuine in same:
        first, second = rng.choice(identities, 2, replace=False)
        image, other = rng.choice(images, 2, replace=False)
        bins.append(encode(draw_face(seed, int(first), int(image))))
        bins.append(encode(draw_face(seed, int(first if genuine else second), int(other))))
    path.write_bytes(pickle.dumps((bins, same)))


def draw_demo(raw: Path, seed: int = 0) -> None:
    """Draw the demo's inputs: a RecordIO set, a folder set in the other style, and unseen people."""
    draw_recordio(raw / "authentic", seed, range(40), images=12)
    draw_folder(raw / "synthetic", seed, range(40, 120), range(10), style="render")
    unseen = range(120, 152)
    draw_folder(raw / "gallery", seed, unseen, range(1))
    draw_folder(raw / "probes", seed, unseen, range(1, 9))
    draw_bin(raw / "unseen.bin", seed, unseen, images=9, pairs=600)


def _faces(seed: int, identity: int, images: int, style: Style) -> list[bytes]:
    return [encode(draw_face(seed, identity, image, style)) for image in range(images)]


def _write_tags(path: Path, names: Sequence[str], identities: Sequence[int]) -> None:
    with path.open("w", newline="") as stream:
        lines = csv.writer(stream, lineterminator="\n")
        lines.writerow(["identity", "group"])
        lines.writerows([name, group_of(identity)] for name, identity in zip(names, identities, strict=True))
