"""Which images are compared: verification sets from `.bin` files, and pairs within groups."""

import hashlib
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.graph import DecodingFailed
from shardgen.errors import DataError, UsageError
from shardgen.images import Unreadable, check

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class VerificationSet:
    """Pairs of images: pair i is images 2i and 2i + 1."""

    name: str
    sha256: str
    """Of the file: two lfw.bin circulate and differ."""
    images: list[bytes]
    """Encoded image files."""
    same: npt.NDArray[np.bool_]
    """`[pairs]`: whether both are of one identity."""


def read_bin(name: str, path: Path) -> VerificationSet:
    """Read InsightFace's pickle of (2P encoded images, P booleans).

    Only byte strings, NumPy arrays, lists, tuples and booleans are built, so a file that would run
    code is refused before it does. Raises `UsageError` when there is no such file, `DataError` when it is
    anything else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give a verification set as InsightFace distributes them") from None
    try:
        bins, same = _DataUnpickler(io.BytesIO(content), encoding="bytes").load()
        images = [one if isinstance(one, bytes) else _bytes_of(one) for one in bins]
        answers = np.array([bool(one) for one in same])
    except _Forbidden as error:
        raise DataError(
            f"{path} wants to call {error} while it is loaded; it is no verification set, delete it"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is no verification set (a pickle of images and answers): {reason}") from None
    if len(images) != 2 * len(answers) or not len(answers) or answers.all() or not answers.any():
        raise DataError(
            f"{path}: {len(images)} images and {len(answers)} answers ({int(answers.sum())} same); "
            "a verification set has two images an answer, and answers of both kinds"
        )
    return VerificationSet(name, hashlib.sha256(content).hexdigest(), images, answers)


@contextmanager
def naming_undecodable(one: VerificationSet) -> Iterator[None]:
    """Turn `DecodingFailed` of a set's images, a whole batch of which is lost, into a `DataError` that names one."""
    try:
        yield
    except DecodingFailed:
        for number, image in enumerate(one.images):
            try:
                check(image)
            except Unreadable as error:
                raise DataError(f"{one.name}: image {number % 2 + 1} of pair {number // 2} {error}") from None
        raise


def _bytes_of(array: Any) -> bytes:
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 1:
        raise ValueError(f"an image is a {type(array).__name__}, neither bytes nor a flat uint8 array")
    return array.tobytes()


class _Forbidden(Exception):
    """The pickle names something that is not plain data."""


class _DataUnpickler(pickle.Unpickler):
    """Builds plain data only (Python documentation, "Restricting Globals")."""

    _ARRAY_PARTS = frozenset({"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"})
    _ARRAY_MODULES = frozenset(
        {
            "numpy",
            "numpy.core.multiarray",
            "numpy._core.multiarray",
            "numpy.core.numeric",
            "numpy._core.numeric",
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if module in self._ARRAY_MODULES and name in self._ARRAY_PARTS:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return _latin1  # how Python 3 writes bytes in the oldest protocols
        raise _Forbidden(f"{module}.{name}")


def _latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in {encoding}")
    return text.encode("latin1")


@dataclass(frozen=True)
class Pairs:
    """Comparisons of probes with gallery templates."""

    probes: Labels
    templates: Labels
    same: npt.NDArray[np.bool_]


def pairs_within_group(
    probes: Labels, mates: Labels, template_groups: npt.NDArray[np.int16], group: int, seed: int = 0
) -> Pairs | None:
    """Return for each probe its mate and one impostor template of the same group, in turn.

    As in RFW, impostors come from the same group, which is what makes groups comparable. `probes` are
    probe numbers sorted by identity, `mates[i]` the template of probes[i]; the impostor is drawn
    from the group's other templates. None when the group has a single identity.
    """
    candidates = np.flatnonzero(template_groups == group)
    if len(candidates) < 2 or not len(probes):
        return None
    draw = np.random.default_rng(seed).integers(0, len(candidates) - 1, len(probes))
    positions = np.searchsorted(candidates, mates)
    is_member = candidates[np.minimum(positions, len(candidates) - 1)] == mates
    impostors = candidates[np.where(is_member & (draw >= positions), draw + 1, draw)]
    return Pairs(
        probes=np.repeat(probes, 2),
        templates=np.stack([mates, impostors], axis=1).ravel(),
        same=np.tile([True, False], len(probes)),
    )
