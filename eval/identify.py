"""Probes searched in a gallery: closed and open set, by demographic group, and how evenly errors fall on groups."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eval.all_pairs import BINS
from eval.faces import Faces
from eval.fairness import metrics, spread
from eval.gallery import Gallery, enrol
from eval.group_errors import Counts, ScoreHistograms, group_rates
from eval.identification import closed_set, identification_rate
from eval.intervals import Interval, PairCounts, wilson
from eval.open_set import open_set
from eval.protocols import Labels, pairs_within_group
from eval.results import FairnessResult, GroupResult, IdentificationResult
from eval.score_histograms import SearchGroups, impostor_histograms
from eval.search import SearchOptions, SearchResult, search
from eval.tiles import ALONE, Workers
from eval.verification import accuracy, pair_distances
from shardgen.errors import DataError
from shardgen.tags import UNKNOWN

FPIR_TARGETS = (0.003, 0.01, 0.1)
MAX_RANK = 5
_CMC_DEPTH = 20
_FOLDS = 10
_MAX_GROUPS = 16
"""Of an axis for its errors to be compared: ages in years are no groups, and histograms of all pairs take 150 MB."""


@dataclass(frozen=True)
class Identified:
    """The result, and what two encoders' rank 1 is compared by."""

    result: IdentificationResult
    rank_1: PairCounts


@dataclass(frozen=True)
class _Search:
    """Mated probes, sorted by identity, and what came of them."""

    gallery: Gallery
    templates: Faces
    """A face of each enrolled identity, for its tags."""
    probes: Faces
    found: SearchResult
    mates: Labels
    """The probes' templates."""


def identify(gallery: Faces, probes: Faces, fmr: float, workers: Workers = ALONE) -> Identified:
    """Search all probes in the gallery, in which an identity is the mean of its faces.

    The two must number identities and groups alike (`faces_of` one catalog, or `in_common`). Errors by group are at the
    threshold at which `fmr` of all impostors match. Raises `DataError` when no probe is of somebody enrolled.
    """
    enrolled = enrol(gallery.embeddings, gallery.identities)
    whole = search(enrolled, probes.embeddings, probes.identities, SearchOptions(candidates=1), workers)
    if not whole.mated.any():
        raise DataError("no probe has its identity in the gallery; identities are matched by name")
    strangers = None if whole.mated.all() else open_set(whole)
    mated = np.flatnonzero(whole.mated)
    mated = mated[np.argsort(probes.identities[mated], kind="stable")]
    one = _Search(
        enrolled,
        gallery.select(np.unique(gallery.identities, return_index=True)[1]),
        probes.select(mated),
        whole.part(mated),
        enrolled.positions(probes.identities[mated]),
    )
    groups = {axis: _groups(one, axis) for axis in probes.groups}
    fairness, notes = _fairness(one, probes, fmr, workers)
    rank_1 = _missed(one)
    accuracies = {axis: _compared(of) for axis, of in groups.items()}
    cmc = closed_set(whole, _CMC_DEPTH).cmc
    result = IdentificationResult(
        num_templates=len(enrolled.templates),
        num_probes=len(mated),
        num_probes_without_mate=len(probes) - len(mated),
        rank_1=float(cmc[0]),
        rank_5=float(cmc[MAX_RANK - 1]),
        groups=groups,
        spreads={axis: spread(of) for axis, of in accuracies.items() if len(of) > 1},
        interval=wilson(rank_1).complement,
        cmc=cmc[: len(enrolled.enrolled)].tolist(),
        tpir_at_fpir=[] if strangers is None else strangers.measurable_tpirs(FPIR_TARGETS),
        open_set=strangers,
        fairness=fairness,
        notes=notes,
    )
    return Identified(result, rank_1)


def _compared(groups: list[GroupResult]) -> list[float]:
    """Return the accuracies of the known groups that have enough pairs."""
    known = [one.verification_accuracy for one in groups if one.group != UNKNOWN]
    return [one for one in known if one is not None]


def _missed(one: _Search, rows: Labels | slice = slice(None)) -> PairCounts:
    """Count searches whose mate does not come first, by the person searched."""
    people = one.probes.identities[rows]
    return PairCounts.from_pairs(people, people, one.found.mate_ranks[rows] > 1, len(one.probes.names))


def _groups(one: _Search, axis: str) -> list[GroupResult]:
    values, codes = one.probes.groups[axis]
    return [_group(one, axis, code, value) for code, value in enumerate(values) if (codes == code).any()]


def _group(one: _Search, axis: str, code: int, value: str) -> GroupResult:
    rows = np.flatnonzero(one.probes.groups[axis][1] == code)
    pairs = pairs_within_group(rows, one.mates[rows], one.templates.groups[axis][1], code)
    verified = None
    if pairs is not None and len(pairs.same) >= _FOLDS:
        distances = pair_distances(one.probes.embeddings[pairs.probes], one.gallery.templates[pairs.templates])
        verified = accuracy(distances, pairs.same, _FOLDS).mean
    ranks = one.found.mate_ranks[rows]
    return GroupResult(
        value,
        len(rows),
        verified,
        identification_rate(ranks, 1),
        identification_rate(ranks, MAX_RANK),
        wilson(_missed(one, rows)).complement,
    )


def _fairness(one: _Search, probes: Faces, fmr: float, workers: Workers) -> tuple[dict[str, FairnessResult], list[str]]:
    """Return the errors by group for each axis that has groups, and why there are none for others."""
    results: dict[str, FairnessResult] = {}
    notes: list[str] = []
    for axis, (values, codes) in probes.groups.items():
        enrolled = one.templates.groups[axis][1]
        there = np.union1d([0], np.concatenate([codes, enrolled]))  # 0 is unknown
        if len(there) < 3:
            continue
        if len(there) > 1 + _MAX_GROUPS:
            notes.append(f"errors by {axis} are left out: {len(there) - 1} groups are more than {_MAX_GROUPS}")
            continue
        names = tuple(values[code] for code in there.tolist())
        groups = SearchGroups(len(there), *(np.searchsorted(there, of).astype(np.int16) for of in (codes, enrolled)))
        impostor = impostor_histograms(one.gallery, probes.embeddings, probes.identities, groups, workers=workers)
        of_probes = np.searchsorted(there, one.probes.groups[axis][1])
        comparisons = ScoreHistograms(_genuine(one, of_probes, groups), impostor, names)
        try:
            threshold = comparisons.threshold(fmr)
        except DataError as error:
            notes.append(f"errors by {axis} are left out: {error}")
            continue
        cells = comparisons.cells(threshold)
        rates = group_rates(cells)
        results[axis] = FairnessResult(
            fmr=fmr,
            rates=rates,
            fnmr_intervals=[_fnmr_interval(one, axis, values.index(group), threshold) for group in rates.groups],
            cells=cells,
            metrics=metrics(rates) if len(rates.groups) > 1 else None,
        )
    return results, notes


def _genuine(one: _Search, of_probes: Labels, groups: SearchGroups) -> Counts:
    """Return the histograms of mates' scores, [probe's group, mate's group, bins]."""
    bins = np.clip(((one.found.mate_scores + 1) * (BINS // 2)).astype(np.int64), 0, BINS - 1)
    histograms: Counts = np.zeros((groups.number, groups.number, BINS), np.int64)
    np.add.at(histograms, (of_probes, groups.of_enrolled[one.mates], bins), 1)
    return histograms


def _fnmr_interval(one: _Search, axis: str, code: int, threshold: float) -> Interval:
    in_group: npt.NDArray[np.bool_] = one.probes.groups[axis][1] == code
    rows = np.flatnonzero(in_group & (one.templates.groups[axis][1][one.mates] == code))
    people = one.probes.identities[rows]
    missed = one.found.mate_scores[rows] < threshold
    return wilson(PairCounts.from_pairs(people, people, missed, len(one.probes.names)))
