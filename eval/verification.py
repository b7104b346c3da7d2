"""1:1 verification from distances d = 2 - 2 cos of unit embeddings; a pair is "same" when d < threshold."""

from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from eval.embed import Embeddings
from shardgen.errors import DataError

Distances = npt.NDArray[np.float64]
Same = npt.NDArray[np.bool_]

THRESHOLDS = np.arange(0, 4, 0.01)


@dataclass(frozen=True)
class Accuracy:
    """The published protocol's result."""

    mean: float
    std: float
    """Over the folds, ddof 0."""
    threshold: float
    """Mean over the folds of the threshold chosen on the other nine."""
    num_pairs: int


@dataclass(frozen=True)
class TarAtFar:
    """True accept rate where the false accept rate does not exceed a target."""

    target_far: float
    far: float
    """The realised rate, at most the target."""
    tar: float
    threshold: float


@dataclass(frozen=True)
class Roc:
    """True against false accept rate over all thresholds, both rising from 0 to 1."""

    far: npt.NDArray[np.float64]
    tar: npt.NDArray[np.float64]


def pair_distances(first: Embeddings, second: Embeddings) -> Distances:
    """Return 2 - 2 cos for each row of two `[pairs, embedding]` arrays of unit rows."""
    cosines: Distances = np.einsum("ij,ij->i", first, second, dtype=np.float64)
    return 2 - 2 * cosines


def accuracy(distances: Distances, same: Same, folds: int = 10) -> Accuracy:
    """Score the pairs by LFW's protocol as InsightFace's `verification.py` implements it.

    Contiguous folds; for each, the first threshold of 0, .01, ..., 3.99 with the highest accuracy on the
    other folds is applied to it; mean and standard deviation over the folds.
    """
    if len(same) < folds:
        raise DataError(f"{len(same)} pairs do not make {folds} folds; add pairs")
    # A pair is accepted from the first threshold above its distance on, so counts per threshold are
    # cumulative sums of a histogram: no pairs x thresholds table.
    accepted_from = np.searchsorted(THRESHOLDS, distances, side="right")
    fold_of = np.repeat(np.arange(folds), [len(part) for part in np.array_split(same, folds)])
    bins = len(THRESHOLDS) + 1
    gain = np.where(same, 1.0, -1.0)
    histogram = np.bincount(fold_of * bins + accepted_from, gain, folds * bins).reshape(folds, bins)
    fold_sizes = np.bincount(fold_of, minlength=folds)
    impostors = np.bincount(fold_of[~same], minlength=folds)
    correct = impostors[:, None] + np.cumsum(histogram, axis=1)[:, :-1]  # [folds, thresholds]
    others = (correct.sum(0) - correct) / (len(same) - fold_sizes)[:, None]
    chosen = others.argmax(1)
    per_fold = correct[np.arange(folds), chosen] / fold_sizes
    return Accuracy(
        mean=float(per_fold.mean()),
        std=float(per_fold.std()),
        threshold=float(THRESHOLDS[chosen].mean()),
        num_pairs=len(same),
    )


def tar_at_far(distances: Distances, same: Same, target_far: float) -> TarAtFar:
    """Return the true accept rate at the largest threshold whose false accept rate is at most the target.

    Raises `DataError` when the target is below what this number of impostors can show.
    """
    impostors = np.sort(distances[~same])
    allowed = _allowed_accepts(target_far, len(impostors))
    if not allowed:
        raise DataError(
            f"FAR {target_far:g} cannot be measured with {len(impostors)} impostor pairs; "
            f"it needs at least {ceil(round(1 / target_far, 9))}"
        )
    threshold = float(impostors[allowed]) if allowed < len(impostors) else np.inf
    return TarAtFar(
        target_far=target_far,
        far=float((impostors < threshold).mean()),
        tar=float((distances[same] < threshold).mean()),
        threshold=threshold,
    )


def roc(distances: Distances, same: Same) -> Roc:
    """Return the curve at every distinct distance."""
    order = np.argsort(distances, kind="stable")
    ordered, genuine = distances[order], same[order]
    last_of_ties = np.append(ordered[1:] != ordered[:-1], True)
    accepted = np.flatnonzero(last_of_ties) + 1
    true_accepts = np.cumsum(genuine)[accepted - 1]
    return Roc(
        far=np.concatenate([[0.0], (accepted - true_accepts) / (~same).sum()]),
        tar=np.concatenate([[0.0], true_accepts / same.sum()]),
    )


def equal_error_rate(curve: Roc) -> float:
    """Return the rate at which false accepts and false rejects are equal, interpolated linearly."""
    gap = curve.far - (1 - curve.tar)  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    before = max(after - 1, 0)
    span = gap[after] - gap[before]
    weight = -gap[before] / span if span else 0.0
    return float(curve.far[before] + weight * (curve.far[after] - curve.far[before]))


def measurable_tars(distances: Distances, same: Same, targets: tuple[float, ...]) -> list[TarAtFar]:
    """Return the true accept rate at each of the targets that the pairs suffice for."""
    num_impostors = int((~same).sum())
    return [tar_at_far(distances, same, one) for one in targets if _allowed_accepts(one, num_impostors)]


def _allowed_accepts(target_far: float, num_impostors: int) -> int:
    return int(round(target_far * num_impostors, 9))  # 1/49 of 49 is 1, not 0.999...
