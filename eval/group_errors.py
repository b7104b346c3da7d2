"""Errors by demographic group, at one global threshold or at one of each group's own.

Everything is counts: comparisons and errors by the groups of the two faces. A comparison belongs to a group when both
its faces do; comparisons across groups show in the matrix of `Cells` alone, and "unknown" is no group. A pair is a
match when its score, higher = more alike, is at least the threshold (ISO/IEC 19795-1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol

import numpy as np
import numpy.typing as npt

from eval.verification import allowed_accepts
from shardgen.errors import DataError
from shardgen.tags import UNKNOWN

Rates = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Axis = tuple[tuple[str, ...], npt.NDArray[np.int16]]
"""An axis' values, "unknown" first, and the code of each face."""

MIN_COMPARISONS = 10
"""A group with fewer genuine or fewer impostor comparisons has no rates."""


def intersectional(axes: Sequence[Axis]) -> Axis:
    """Return one axis whose values are the combinations that occur, "Asian, Female"; unknown where any part is."""
    codes = np.stack([codes for _, codes in axes])
    shape = [len(values) for values, _ in axes]
    known = (codes > 0).all(0)
    found, positions = np.unique(np.ravel_multi_index(tuple(codes[:, known]), shape), return_inverse=True)
    parts = zip(*np.unravel_index(found, shape), strict=True)
    names = [", ".join(values[part] for (values, _), part in zip(axes, one, strict=True)) for one in parts]
    joined = np.zeros(codes.shape[1], np.int16)
    joined[known] = positions + 1
    return (UNKNOWN, *names), joined


@dataclass(frozen=True)
class Cells:
    """The outcome of comparisons at a threshold: counts `[groups, groups]` by the groups of first and second face.

    In a search, first faces are the probes and second ones the templates.
    """

    groups: tuple[str, ...]
    thresholds: Rates
    """`[groups]`: what a comparison's score had to reach, by the group of the first face."""
    num_genuine: Counts
    false_non_matches: Counts
    num_impostor: Counts
    false_matches: Counts

    def fmr(self) -> Rates:
        """Return the cross-group impostor matrix, `[groups, groups]`: NaN where nothing was compared."""
        return np.where(self.num_impostor > 0, self.false_matches / np.maximum(self.num_impostor, 1), np.nan)

    def unordered(self) -> "Cells":
        """Return the counts of pairs that have no first face: those of (a, b) and (b, a) together, in both places."""
        counts = (self.num_genuine, self.false_non_matches, self.num_impostor, self.false_matches)
        return Cells(self.groups, self.thresholds, *(one + np.triu(one.T, 1) + np.tril(one.T, -1) for one in counts))


class Comparisons(Protocol):
    """Comparisons on one axis of groups, at any threshold: `ScoredPairs` or `ScoreHistograms`."""

    @property
    def values(self) -> tuple[str, ...]:
        """The axis' values, "unknown" first."""

    def threshold(self, fmr: float, code: int | None = None) -> float:
        """Return the lowest threshold at which no more than this share of the impostors match.

        Of all impostors, or of those within the group of a code. Raises `DataError` for a rate that too few
        impostors stand behind.
        """

    def cells(self, thresholds: float | Rates) -> Cells:
        """Return the outcome at a threshold, or at one for each of the axis' values."""


@dataclass(frozen=True)
class ScoredPairs:
    """Compared faces with their scores and groups; a row each."""

    scores: npt.NDArray[np.float32]
    same: npt.NDArray[np.bool_]
    first: npt.NDArray[np.int16]
    """The group code of each pair's first face, 0 for unknown."""
    second: npt.NDArray[np.int16]
    values: tuple[str, ...]

    def threshold(self, fmr: float, code: int | None = None) -> float:
        """See `Comparisons`."""
        within = True if code is None else (self.first == code) & (self.second == code)
        impostors = np.sort(self.scores[~self.same & within])[::-1]
        allowed = allowed_accepts(fmr, len(impostors))
        if allowed == len(impostors):
            return -np.inf
        return float(np.nextafter(impostors[allowed], impostors.dtype.type(np.inf)))

    def errors(self, thresholds: float | Rates) -> npt.NDArray[np.bool_]:
        """Return which pairs are decided wrongly: `[pairs]`; see `Comparisons.cells` for the thresholds."""
        needed = np.broadcast_to(np.asarray(thresholds, np.float64), len(self.values))[self.first]
        wrong: npt.NDArray[np.bool_] = (self.scores >= needed) != self.same
        return wrong

    def cells(self, thresholds: float | Rates) -> Cells:
        """See `Comparisons`."""
        size = len(self.values)
        cell = np.ravel_multi_index(
            (self.same.astype(np.int8), self.errors(thresholds).astype(np.int8), self.first, self.second),
            (2, 2, size, size),
        )
        counts = np.bincount(cell, minlength=4 * size**2).reshape(2, 2, size, size)
        return _known_cells(self.values, thresholds, counts.sum(1), counts[:, 1])


@dataclass(frozen=True)
class ScoreHistograms:
    """Counts of scores, `[values, values, bins]` by the groups of first and second face.

    Bin b holds the scores from -1 + 2 b / bins to the next; thresholds are those edges.
    """

    genuine: Counts
    impostor: Counts
    values: tuple[str, ...]

    def threshold(self, fmr: float, code: int | None = None) -> float:
        """See `Comparisons`."""
        histogram = self.impostor.sum((0, 1)) if code is None else self.impostor[code, code]
        allowed = allowed_accepts(fmr, int(histogram.sum()))
        matching_bins = np.searchsorted(np.cumsum(histogram[::-1]), allowed, side="right")
        return float(1 - 2 * matching_bins / len(histogram))

    def cells(self, thresholds: float | Rates) -> Cells:
        """See `Comparisons`; a threshold between two edges is taken as the upper."""
        size, _, bins = self.genuine.shape
        needed = np.broadcast_to(np.asarray(thresholds, np.float64), size)
        lowest = np.clip(np.ceil((needed + 1) / 2 * bins), 0, bins).astype(int)
        totals = np.stack([self.impostor.sum(2), self.genuine.sum(2)])
        errors = np.stack([_from_bins(self.impostor, lowest), totals[1] - _from_bins(self.genuine, lowest)])
        return _known_cells(self.values, thresholds, totals, errors)


def _from_bins(histograms: Counts, lowest: npt.NDArray[np.int64]) -> Counts:
    """Return how many scores lie in a bin or above, with the bin by the group of the first face."""
    return np.stack([row[:, bin_:].sum(1) for row, bin_ in zip(histograms, lowest, strict=True)])


def _known_cells(values: tuple[str, ...], thresholds: float | Rates, totals: Counts, errors: Counts) -> Cells:
    """Return the cells of `[impostor and genuine, values, values]` counts, without "unknown"."""
    return Cells(
        groups=values[1:],
        thresholds=np.broadcast_to(np.asarray(thresholds, np.float64), len(values))[1:],
        num_genuine=totals[1, 1:, 1:],
        false_non_matches=errors[1, 1:, 1:],
        num_impostor=totals[0, 1:, 1:],
        false_matches=errors[0, 1:, 1:],
    )


@dataclass(frozen=True)
class GroupRates:
    """Errors within groups, `[groups]` each."""

    groups: tuple[str, ...]
    thresholds: Rates
    num_genuine: Counts
    false_non_matches: Counts
    num_impostor: Counts
    false_matches: Counts
    left_out: tuple[str, ...] = ()
    """A line for each group that has too few comparisons."""

    @property
    def fmr(self) -> Rates:
        """False match rate: impostors at or above the threshold."""
        return self.false_matches / self.num_impostor

    @property
    def fnmr(self) -> Rates:
        """False non-match rate: genuine pairs below the threshold."""
        return self.false_non_matches / self.num_genuine

    @property
    def accuracy(self) -> Rates:
        """1 - (FMR + FNMR) / 2, the accuracy on as many genuine pairs as impostors, which RFW and FRCSyn have."""
        return 1 - (self.fmr + self.fnmr) / 2


def rates_at_threshold(comparisons: Comparisons, fmr: float) -> GroupRates:
    """Return the groups' rates at one threshold: where this share of all impostors match.

    All impostors are those of any group, across groups, and of unknown ones. Raises `DataError` for too few of them.
    """
    return group_rates(comparisons.cells(comparisons.threshold(fmr)))


def rates_at_own_thresholds(comparisons: Comparisons, fmr: float) -> GroupRates:
    """Return the groups' rates where each has a threshold of its own, at which this share of its impostors match.

    For comparison with older papers: no system knows a face's group. Groups with too few impostors are left out.
    """
    thresholds = np.array([_own(comparisons, fmr, code) for code in range(len(comparisons.values))])
    return group_rates(comparisons.cells(thresholds), ceil(round(1 / fmr, 9)))


def _own(comparisons: Comparisons, fmr: float, code: int) -> float:
    try:
        return comparisons.threshold(fmr, code)
    except DataError:
        return np.inf  # a stand-in: `group_rates` leaves the group out and says why


def group_rates(cells: Cells, min_impostors: int = MIN_COMPARISONS) -> GroupRates:
    """Return the errors within groups, without those of fewer than 10 genuine or `min_impostors` comparisons."""
    least = max(min_impostors, MIN_COMPARISONS)
    genuine, impostor = cells.num_genuine.diagonal(), cells.num_impostor.diagonal()
    kept = (genuine >= MIN_COMPARISONS) & (impostor >= least)
    return GroupRates(
        groups=tuple(group for group, keep in zip(cells.groups, kept, strict=True) if keep),
        thresholds=cells.thresholds[kept],
        num_genuine=genuine[kept],
        false_non_matches=cells.false_non_matches.diagonal()[kept],
        num_impostor=impostor[kept],
        false_matches=cells.false_matches.diagonal()[kept],
        left_out=tuple(
            f"{cells.groups[place]} is left out: {genuine[place]} genuine and {impostor[place]} impostor comparisons, "
            f"it needs {MIN_COMPARISONS} and {least}"
            for place in np.flatnonzero(~kept)
        ),
    )
