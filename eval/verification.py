"""1:1 verification from distances d = 2 - 2 cos of unit embeddings; a pair is "same" when d < threshold."""

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.embed import Embeddings
from shardgen.errors import DataError

Distances = npt.NDArray[np.float64]
Same = npt.NDArray[np.bool_]
Folds = npt.NDArray[np.int64]
"""`[pairs]`: the fold of each, counted from 0."""

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


def accuracy(distances: Distances, same: Same, folds: int | Folds = 10) -> Accuracy:
    """Score the pairs by LFW's protocol as InsightFace's `verification.py` implements it.

    Contiguous folds, unless `folds` is each pair's, counted from 0; for each, the first threshold of
    0, .01, ..., 3.99 with the highest accuracy on the other folds is applied to it; mean and standard
    deviation over the folds. Raises `DataError` when there are too few pairs, or a fold is without any.
    """
    correct, chosen, fold_sizes = _per_fold(distances, same, _fold_of(same, folds))
    per_fold = correct[np.arange(len(chosen)), chosen] / fold_sizes
    return Accuracy(
        mean=float(per_fold.mean()),
        std=float(per_fold.std()),
        threshold=float(THRESHOLDS[chosen].mean()),
        num_pairs=len(same),
    )


def told_wrong(distances: Distances, same: Same, folds: int | Folds = 10) -> Same:
    """Return which pairs `accuracy` counts as errors, each at the threshold of its own fold."""
    fold_of = _fold_of(same, folds)
    _, chosen, _ = _per_fold(distances, same, fold_of)
    wrong: Same = (distances < THRESHOLDS[chosen][fold_of]) != same
    return wrong


def _fold_of(same: Same, folds: int | Folds) -> Folds:
    return _contiguous(len(same), folds) if isinstance(folds, int) else folds


def _per_fold(distances: Distances, same: Same, fold_of: Folds) -> tuple[npt.NDArray[Any], Folds, npt.NDArray[Any]]:
    """Return [folds, thresholds] pairs told right, each fold's threshold, and each fold's pairs."""
    fold_sizes = np.bincount(fold_of)
    if fold_sizes.min() < 1 or len(fold_sizes) < 2:
        raise DataError(f"the folds have {fold_sizes.tolist()} pairs; give at least two, and each a pair")
    # A pair is accepted from the first threshold above its distance on, so counts per threshold are
    # cumulative sums of a histogram: no pairs x thresholds table.
    accepted_from = np.searchsorted(THRESHOLDS, distances, side="right")
    bins, num_folds = len(THRESHOLDS) + 1, len(fold_sizes)
    gain = np.where(same, 1.0, -1.0)
    histogram = np.bincount(fold_of * bins + accepted_from, gain, num_folds * bins).reshape(num_folds, bins)
    impostors = np.bincount(fold_of[~same], minlength=num_folds)
    correct = impostors[:, None] + np.cumsum(histogram, axis=1)[:, :-1]  # [folds, thresholds]
    others = (correct.sum(0) - correct) / (len(same) - fold_sizes)[:, None]
    return correct, others.argmax(1), fold_sizes


def _contiguous(num_pairs: int, num_folds: int) -> Folds:
    """Return the fold of each pair: the first ones of one more pair where they cannot be equal."""
    if num_pairs < num_folds:
        raise DataError(f"{num_pairs} pairs do not make {num_folds} folds; add pairs")
    size, larger = divmod(num_pairs, num_folds)
    return np.repeat(np.arange(num_folds), size + (np.arange(num_folds) < larger))


def tar_at_far(distances: Distances, same: Same, target_far: float) -> TarAtFar:
    """Return the true accept rate at the largest threshold whose false accept rate is at most the target.

    Raises `DataError` when the target is below what this number of impostors can show.
    """
    return _tar_at(np.sort(distances[~same]), distances[same], target_far)


def _tar_at(impostors: Distances, genuine: Distances, target_far: float) -> TarAtFar:
    """Do so with the impostors' distances sorted."""
    allowed = allowed_accepts(target_far, len(impostors))
    threshold = float(impostors[allowed]) if allowed < len(impostors) else np.inf
    return TarAtFar(
        target_far=target_far,
        far=float(np.searchsorted(impostors, threshold) / len(impostors)),
        tar=float((genuine < threshold).mean()),
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
    impostors, genuine = np.sort(distances[~same]), distances[same]
    return [_tar_at(impostors, genuine, one) for one in targets if accepts_within(one, len(impostors))]


def accepts_within(target_far: float, num_impostors: int) -> int:
    """Return how many impostors may be accepted; 0 where they are too few for the target."""
    return int(round(target_far * num_impostors, 9))  # 1/49 of 49 is 1, not 0.999...


def allowed_accepts(target_far: float, num_impostors: int) -> int:
    """Do the same, but raise `DataError` where they are too few, saying how many it takes."""
    if not (allowed := accepts_within(target_far, num_impostors)):
        raise DataError(
            f"FAR {target_far:g} cannot be measured with {num_impostors} impostor pairs; "
            f"it needs at least {ceil(round(1 / target_far, 9))}"
        )
    return allowed
