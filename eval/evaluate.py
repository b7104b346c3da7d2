"""One evaluation: every protocol asked for, with one encoder, into values that a report can show."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from eval.embedding_cache import Embedder
from eval.identify import identify
from eval.inputs import hash_at, open_faces, open_pair, open_sources
from eval.intervals import PairCounts, wilson
from eval.pairs import read_pairs
from eval.protocols import VerificationSet, naming_undecodable
from eval.report import Panel
from eval.results import Evaluation, HardPair, Scores, VerificationResult
from eval.sections import all_pairs, among_distractors, growing_gallery, janus, listed_pairs
from eval.tiles import ALONE, Workers
from eval.verification import accuracy, equal_error_rate, measurable_tars, pair_distances, roc, told_wrong
from pipeline.catalog import open_catalog
from shardgen.errors import UsageError

FAR_TARGETS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FMR = 1e-3
_HARDEST = 4  # of each kind and set


@dataclass(frozen=True)
class Protocols:
    """What is measured. Sets are shard sets, or files of embeddings."""

    bins: Sequence[VerificationSet] = ()
    gallery_and_probes: tuple[Path, Path] | None = None
    distractors: Path | None = None
    """Of nobody among the probes."""
    pairs: Sequence[tuple[Path, Path]] = ()
    """(Set, list of pairs of its faces)."""
    all_pairs: Sequence[Path] = ()
    ijb: Sequence[tuple[Path, Path]] = ()
    """(Shard set of all images, the folder `meta`)."""
    fmr: float = FMR
    """Share of impostors that match at the threshold of the groups' errors."""


def evaluate(
    encoder: str,
    embedder: Embedder | None,
    protocols: Protocols,
    device: torch.device,
    workers: Workers = ALONE,
) -> Evaluation:
    """Measure an encoder, or, without one, embeddings, by all protocols; `workers` share the searches.

    Raises `UsageError` when there is nothing to measure, or a set is to be embedded by nothing, and `DataError` when a
    set is at fault.
    """
    asked = (protocols.bins, protocols.gallery_and_probes, protocols.pairs, protocols.all_pairs, protocols.ijb)
    if not any(asked):
        raise UsageError("nothing to evaluate; give --bin NAME=FILE, or --gallery SET --probes SET")
    if len({one.name for one in protocols.bins}) < len(protocols.bins):
        raise UsageError(f"two verification sets are called {protocols.bins[-1].name}; give each its own NAME=FILE")
    result = Evaluation(encoder, [], None, [], footer=_footer(embedder, protocols))
    if protocols.bins:
        assert embedder is not None
        result = _verified(result, embedder, protocols.bins)
    panels = list(_panels(embedder, protocols, device))
    if protocols.gallery_and_probes is not None:
        gallery, probes = open_pair(*protocols.gallery_and_probes, embedder)
        found = identify(gallery, probes, protocols.fmr, workers)
        outcomes = {**result.outcomes, "rank 1 %": found.rank_1}
        result = replace(result, identification=found.result, outcomes=outcomes)
        panels.append(growing_gallery(gallery, probes, workers))
        if protocols.distractors is not None:
            others = open_faces(protocols.distractors, embedder)
            panels.append(among_distractors(protocols.distractors.name, probes, others, device))
    return replace(result, panels=panels)


def _footer(embedder: Embedder | None, protocols: Protocols) -> dict[str, str]:
    """Return the hashes of what the figures stand on; verification sets tell theirs."""
    sides = protocols.gallery_and_probes or ()
    files = [*sides, *protocols.all_pairs, *(path for one in protocols.pairs for path in one)]
    files += [folder for folder, _ in protocols.ijb]
    files += [] if protocols.distractors is None else [protocols.distractors]
    hashes = {f"SHA-256 of {path}": hash_at(path) for path in dict.fromkeys(files)}
    return hashes if embedder is None else {"SHA-256 of the encoder": embedder.model.digest, **hashes}


def _panels(embedder: Embedder | None, protocols: Protocols, device: torch.device) -> Iterator[Panel]:
    for folder, pairs in protocols.pairs:
        faces = open_faces(folder, embedder)
        yield listed_pairs(f"{folder}, {pairs.name}", faces, read_pairs(pairs, faces, open_sources(folder)))
    for folder in protocols.all_pairs:
        yield all_pairs(str(folder), open_faces(folder, embedder), device)
    for folder, meta in protocols.ijb:
        if embedder is None:
            raise UsageError("IJB weighs embeddings by their length: give an encoder, not embeddings")
        yield janus(meta, embedder.of_set(open_catalog({"ijb": folder}), normalise=False), open_sources(folder))


def _verified(result: Evaluation, embedder: Embedder, bins: Sequence[VerificationSet]) -> Evaluation:
    scores = [_score(one, embedder) for one in bins]
    outcomes = [_outcome(one) for one in scores]
    pairs = list(zip(bins, scores, outcomes, strict=True))
    return replace(
        result,
        verification=[_verification(one, score, outcome) for one, score, outcome in pairs],
        scores=scores,
        hardest=[hard for one, score, _ in pairs for hard in _hardest(one, score)],
        outcomes={f"accuracy on {one.name} %": outcome for one, _, outcome in pairs},
    )


def _score(one: VerificationSet, embedder: Embedder) -> Scores:
    with naming_undecodable(one):
        embeddings = embedder.of_images(one.images, one.sha256)
    return Scores(one.name, pair_distances(embeddings[0::2], embeddings[1::2]), one.same)


def _verification(one: VerificationSet, scores: Scores, outcome: PairCounts) -> VerificationResult:
    return VerificationResult(
        name=one.name,
        sha256=one.sha256,
        accuracy=accuracy(scores.distances, scores.same),
        equal_error_rate=equal_error_rate(roc(scores.distances, scores.same)),
        tar_at_far=measurable_tars(scores.distances, scores.same, FAR_TARGETS),
        interval=wilson(outcome).complement,
    )


def _outcome(scores: Scores) -> PairCounts:
    """Count the pairs told wrong, each as if of a person of its own."""
    pairs = np.arange(len(scores.same))
    return PairCounts.from_pairs(pairs, pairs, told_wrong(scores.distances, scores.same), len(pairs))


def _hardest(one: VerificationSet, scores: Scores) -> list[HardPair]:
    """Return the genuine pairs that are least alike and the impostors that are most."""
    cosines = 1 - scores.distances / 2
    hardness = np.where(one.same, -cosines, cosines)
    of_kinds = [np.flatnonzero(one.same == same) for same in (True, False)]
    picked = [pair for of in of_kinds for pair in of[np.argsort(-hardness[of], kind="stable")][:_HARDEST].tolist()]
    return [
        HardPair(
            one.name,
            pair,
            (one.images[2 * pair], one.images[2 * pair + 1]),
            float(cosines[pair]),
            bool(one.same[pair]),
        )
        for pair in picked
    ]
