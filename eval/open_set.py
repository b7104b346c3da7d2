"""Open-set identification: probes that nobody enrolled are to find nobody, the others their mate.

FPIR(N, T) is the share of non-mated probes for which any of the N enrolled scores T or more, and FNIR(N, R, T) the
share of mated probes whose mate has a rank above R or scores below T (ISO/IEC 19795-1; NIST IR 8271). TPIR = 1 - FNIR.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from eval.search import Scores, SearchResult
from eval.verification import accepts_within
from shardgen.errors import DataError

Rates = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TpirAtFpir:
    """True positive identification rate where the false positive identification rate does not exceed a target."""

    target_fpir: float
    fpir: float
    """The realised rate, at most the target."""
    tpir: float
    threshold: float


@dataclass(frozen=True)
class OpenSet:
    """What the rates are counted from, each ascending."""

    mates: Scores
    """`[mated probes]`: the score of the mate; -inf where its rank is too high."""
    strangers: Scores
    """`[non-mated probes]`: the highest score of anyone."""

    def fnir(self, thresholds: npt.ArrayLike) -> Rates:
        """Return the false negative identification rate at each threshold."""
        return _share_below(self.mates, thresholds)

    def fpir(self, thresholds: npt.ArrayLike) -> Rates:
        """Return the false positive identification rate at each threshold."""
        return 1 - _share_below(self.strangers, thresholds)

    def det(self) -> tuple[Scores, Rates, Rates]:
        """Return (thresholds, FPIR, FNIR) at every score where either rate can change, ascending."""
        thresholds = np.unique(np.concatenate([self.mates[self.mates > -np.inf], self.strangers]))
        return thresholds, self.fpir(thresholds), self.fnir(thresholds)

    def tpir_at(self, target_fpir: float) -> TpirAtFpir:
        """Return the rate at the lowest threshold whose false positive identification rate is at most the target.

        Raises `DataError` when the target is below what this number of non-mated probes can show.
        """
        allowed = accepts_within(target_fpir, len(self.strangers))
        if not allowed:
            raise DataError(
                f"FPIR {target_fpir:g} cannot be measured with {len(self.strangers)} non-mated probes; "
                f"it needs at least {ceil(round(1 / target_fpir, 9))}"
            )
        threshold = self.strangers[0]
        if allowed < len(self.strangers):
            threshold = np.nextafter(self.strangers[-1 - allowed], np.float32(np.inf))
        return TpirAtFpir(
            target_fpir=target_fpir,
            fpir=float(self.fpir(threshold)),
            tpir=float(1 - self.fnir(threshold)),
            threshold=float(threshold),
        )

    def measurable_tpirs(self, targets: Sequence[float]) -> list[TpirAtFpir]:
        """Return the rate at each of the targets that the non-mated probes suffice for."""
        return [self.tpir_at(one) for one in targets if accepts_within(one, len(self.strangers))]


def open_set(result: SearchResult, max_rank: int = 1) -> OpenSet:
    """Return what the open-set rates of a search are counted from; R is `max_rank`.

    For a group of probes, at all probes' threshold or its own, give `result.part(of the group)`; for a gallery of
    one group, search in `gallery.part(of the group)`. Raises `DataError` when no probe is mated, or all are.
    """
    mated = result.mated
    if mated.all() or not mated.any():
        raise DataError(
            f"{mated.sum()} of {len(mated)} probes have their identity in the gallery; "
            "an open set needs probes with and without"
        )
    found = np.where(result.mate_ranks <= max_rank, result.mate_scores, -np.inf).astype(np.float32)
    return OpenSet(np.sort(found[mated]), np.sort(result.best_impostor[~mated]))


def _share_below(ascending: Scores, thresholds: npt.ArrayLike) -> Rates:
    return np.asarray(np.searchsorted(ascending, np.asarray(thresholds, np.float32), side="left") / len(ascending))
