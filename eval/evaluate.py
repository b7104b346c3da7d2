"""One evaluation: every protocol asked for, with one encoder, into values that a report can show."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.embed import Embed, Embeddings, embed_images, embed_set
from eval.fairness import Spread, spread
from eval.identification import Gallery, enrol, identification_rate, mate_ranks
from eval.protocols import Labels, VerificationSet, name_undecodable, pairs_within_group
from eval.verification import (
    Accuracy,
    Distances,
    Same,
    TarAtFar,
    accuracy,
    equal_error_rate,
    measurable_tars,
    pair_distances,
    roc,
)
from pipeline.catalog import Catalog, open_catalog
from pipeline.config import LoaderConfig
from pipeline.graph import DecodingFailed
from shardgen.errors import DataError, UsageError
from shardgen.tags import UNKNOWN

FAR_TARGETS = (1e-1, 1e-2, 1e-3, 1e-4)
MAX_RANK = 5
_FOLDS = 10


@dataclass(frozen=True)
class VerificationResult:
    """One verification set."""

    name: str
    sha256: str
    accuracy: Accuracy
    equal_error_rate: float
    tar_at_far: Sequence[TarAtFar]
    """The targets that the set's impostors suffice for."""


@dataclass(frozen=True)
class GroupResult:
    """The probes of one demographic group."""

    group: str
    num_probes: int
    verification_accuracy: float | None
    """Of each probe against its mate and against an impostor of its own group; None with too few."""
    rank_1: float
    rank_5: float


@dataclass(frozen=True)
class IdentificationResult:
    """A set of probes searched in a gallery."""

    num_templates: int
    num_probes: int
    num_probes_without_mate: int
    """Left out: closed-set identification is about probes whose mate is enrolled."""
    rank_1: float
    rank_5: float
    groups: Mapping[str, Sequence[GroupResult]]
    """Tag axis -> its groups."""
    spreads: Mapping[str, Spread]
    """Tag axis -> spread of the known groups' verification accuracies."""


@dataclass(frozen=True)
class Scores:
    """What a curve or histogram is drawn from."""

    name: str
    distances: Distances
    same: Same


@dataclass(frozen=True)
class Evaluation:
    """All results of one encoder."""

    encoder: str
    """What was evaluated: path and step."""
    verification: Sequence[VerificationResult]
    identification: IdentificationResult | None
    scores: Sequence[Scores]

    def to_json(self) -> dict[str, Any]:
        """Return the figures, without the scores behind them."""
        return {
            "encoder": self.encoder,
            "verification": [asdict(one) for one in self.verification],
            "identification": asdict(self.identification) if self.identification else None,
        }

    def lines(self) -> list[str]:
        """Return the main figures for a person."""
        lines = [
            f"{one.name}: accuracy {one.accuracy.mean:.4f} +- {one.accuracy.std:.4f} over {one.accuracy.num_pairs} "
            f"pairs (EER {one.equal_error_rate:.4f}; file {one.sha256[:12]})"
            for one in self.verification
        ]
        if (found := self.identification) is not None:
            lines.append(
                f"identification: rank 1 {found.rank_1:.4f}, rank 5 {found.rank_5:.4f} ({found.num_probes} probes, "
                f"{found.num_templates} enrolled, {found.num_probes_without_mate} without mate)"
            )
            lines += [
                f"  by {axis}: verification {one.mean:.4f}, STD over the groups {one.std:.4f}"
                for axis, one in found.spreads.items()
            ]
        return lines


def evaluate(
    encoder: str,
    embed: Embed,
    loader: LoaderConfig,
    device: torch.device,
    bins: Sequence[VerificationSet] = (),
    gallery_and_probes: tuple[Path, Path] | None = None,
) -> Evaluation:
    """Measure an encoder on verification sets, and on probes searched in a gallery.

    Raises `UsageError` when there is nothing to measure, `DataError` when a set is at fault.
    """
    if not bins and gallery_and_probes is None:
        raise UsageError("nothing to evaluate; give --bin NAME=FILE, or --gallery SET --probes SET")
    scores = [_score_bin(one, embed, loader, device) for one in bins]
    verification = [_verification(one.name, one.sha256, score) for one, score in zip(bins, scores, strict=True)]
    identification = None
    if gallery_and_probes is not None:
        identification = _identification(*gallery_and_probes, embed, loader, device)
    return Evaluation(encoder, verification, identification, scores)


def _score_bin(one: VerificationSet, embed: Embed, loader: LoaderConfig, device: torch.device) -> Scores:
    try:
        embeddings = embed_images(embed, one.images, loader, device)
    except DecodingFailed:
        name_undecodable(one)
        raise
    return Scores(one.name, pair_distances(embeddings[0::2], embeddings[1::2]), one.same)


def _verification(name: str, sha256: str, scores: Scores) -> VerificationResult:
    return VerificationResult(
        name=name,
        sha256=sha256,
        accuracy=accuracy(scores.distances, scores.same),
        equal_error_rate=equal_error_rate(roc(scores.distances, scores.same)),
        tar_at_far=measurable_tars(scores.distances, scores.same, FAR_TARGETS),
    )


@dataclass(frozen=True)
class _Search:
    """Probes with a mate in the gallery, and where that mate was found; rows sorted by identity."""

    gallery: Gallery
    template_samples: Labels
    """A catalog row of each template's identity, for its tags."""
    probe_samples: Labels
    """The probes' catalog rows."""
    mates: Labels
    """The probes' templates."""
    ranks: Labels
    probe_embeddings: Embeddings


def _identification(
    gallery: Path, probes: Path, embed: Embed, loader: LoaderConfig, device: torch.device
) -> IdentificationResult:
    if gallery.resolve() == probes.resolve():
        raise UsageError(f"{gallery} is gallery and probes; every probe would find itself, give two sets")
    catalog = open_catalog({"gallery": gallery, "probes": probes})
    embeddings = embed_set(embed, catalog, loader, device)
    search, num_unmated = _search(catalog, embeddings)
    groups = {
        axis: [
            result
            for code, value in enumerate(values)
            if (result := _group(catalog, search, axis, code, value)) is not None
        ]
        for axis, values in catalog.axes.items()
    }
    accuracies = {
        axis: [
            one.verification_accuracy
            for one in results
            if one.verification_accuracy is not None and one.group != UNKNOWN
        ]
        for axis, results in groups.items()
    }
    return IdentificationResult(
        num_templates=len(search.gallery.templates),
        num_probes=len(search.ranks),
        num_probes_without_mate=num_unmated,
        rank_1=identification_rate(search.ranks, 1),
        rank_5=identification_rate(search.ranks, MAX_RANK),
        groups=groups,
        spreads={axis: spread(values) for axis, values in accuracies.items() if len(values) > 1},
    )


def _search(catalog: Catalog, embeddings: Embeddings) -> tuple[_Search, int]:
    """Search all probes that have a mate; return the number of those that have none, too."""
    names = {name: number for number, name in enumerate(sorted({name for _, name in catalog.identities}))}
    identity = np.array([names[name] for _, name in catalog.identities])[catalog.label]
    enrolled = np.array(catalog.ids_of("gallery"))
    gallery = enrol(embeddings[enrolled], identity[enrolled])
    samples = np.array(catalog.ids_of("probes"))
    mated = samples[np.isin(identity[samples], gallery.identities)]
    if not len(mated):
        raise DataError("no probe has its identity in the gallery; identities are matched by name")
    mated = mated[np.argsort(identity[mated], kind="stable")]
    return (
        _Search(
            gallery=gallery,
            template_samples=enrolled[np.unique(identity[enrolled], return_index=True)[1]],
            probe_samples=mated,
            mates=np.searchsorted(gallery.identities, identity[mated]),
            ranks=mate_ranks(gallery, embeddings[mated], identity[mated], MAX_RANK),
            probe_embeddings=embeddings[mated],
        ),
        len(samples) - len(mated),
    )


def _group(catalog: Catalog, search: _Search, axis: str, code: int, value: str) -> GroupResult | None:
    probes = np.flatnonzero(catalog.codes(axis, search.probe_samples) == code)
    if not len(probes):
        return None
    template_groups = catalog.codes(axis, search.template_samples)
    pairs = pairs_within_group(probes, search.mates[probes], template_groups, code)
    verified = None
    if pairs is not None and len(pairs.same) >= _FOLDS:
        distances = pair_distances(search.probe_embeddings[pairs.probes], search.gallery.templates[pairs.templates])
        verified = accuracy(distances, pairs.same, _FOLDS).mean
    ranks = search.ranks[probes]
    return GroupResult(
        value, len(probes), verified, identification_rate(ranks, 1), identification_rate(ranks, MAX_RANK)
    )
