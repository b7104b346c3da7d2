"""IJB-B and IJB-C as InsightFace distributes them: images -> templates, templates verified 1:1 and searched 1:N.

A template is what is known of one person: still images and videos, its media. Each image counts by the score of the
face detector and by the length of its embedding, which is small for what hardly is a face: hence f(x) + f(flip x) as
the encoder gives it, `normalise=False` in `embed_set`. Rows of length 1 are taken too, and give a blurred frame the
weight of a portrait; published figures are not of that kind.

Sizes, as IJB-C has them: 469,375 images are read block by block (a memory-mapped file does), 23,124 templates take
50 MB, 15,658,489 pairs about 1 GB while they are scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from eval.embed import Embeddings
from eval.ijb_files import Images, SearchProtocol, Subjects, TemplatePairs
from eval.protocols import Labels
from eval.verification import Distances, TarAtFar, accepts_within, measurable_tars
from shardgen.errors import DataError

FAR_TARGETS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FPIR_TARGETS = (0.1, 0.01)
RANKS = (1, 5, 10)
_IMAGES = 1 << 15
_TEMPLATES = 512
_PROBES = 4096


@dataclass(frozen=True)
class Templates:
    """Pooled embeddings."""

    numbers: Labels
    """Rising."""
    embeddings: Embeddings
    """`[templates, embedding]`, rows of length 1."""

    def rows(self, numbers: npt.NDArray[np.int32] | Labels) -> Labels:
        """Return where templates are; raise `DataError` for one that has no image."""
        rows = np.searchsorted(self.numbers, numbers)
        missing = self.numbers[np.minimum(rows, len(self.numbers) - 1)] != numbers
        if missing.any():
            raise DataError(f"template {numbers[missing.argmax()]} has no image; use one package's meta files together")
        return rows


@dataclass(frozen=True)
class Tpir:
    """True positive identification rate of the mated searches: the mate comes first and scores above a threshold."""

    target_fpir: float
    fpir: float
    """The realised one, below the target: share of non-mated searches with a candidate above the threshold."""
    tpir: float
    threshold: float
    """A cosine."""


@dataclass(frozen=True)
class GallerySearch:
    """All probes searched in one gallery."""

    num_enrolled: int
    num_mated: int
    num_non_mated: int
    found_by_rank: Mapping[int, float]
    """Rank -> share of mated searches whose mate is found there or before; others that score as high come before."""
    tpirs: Sequence[Tpir]
    """The targets that the non-mated searches suffice for."""


@dataclass(frozen=True)
class Identification:
    """Both galleries, and the figures that are published."""

    galleries: Sequence[GallerySearch]
    found_by_rank: Mapping[int, float]
    """Over the mated searches of both."""
    tpir_by_fpir: Mapping[float, float]
    """Target -> mean over the galleries, where both suffice for it."""


def pool(images: Images, embeddings: Embeddings, names: Sequence[str]) -> Templates:
    """Return the templates, given embeddings `[any, embedding]` that are not normalised and the names they belong to.

    Detector score times embedding, the mean over each of a template's media, their sum, normalised, as InsightFace's
    `image2template_feature` does. Raises `DataError` for an image without embedding or a template of length zero.
    """
    rows = _rows_of(images.names, names)
    _, medium, num_images = np.unique(
        np.stack([images.templates, images.media], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    weights = images.scores / num_images[medium.ravel()]
    numbers, template = np.unique(images.templates, return_inverse=True)
    sums = np.zeros((len(numbers), embeddings.shape[1]))
    for start in range(0, len(rows), _IMAGES):
        part = slice(start, start + _IMAGES)
        block = embeddings[rows[part]]
        chosen = (template[part], np.arange(len(block)))
        sums += csr_array((weights[part], chosen), shape=(len(numbers), len(block))) @ block
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    if not lengths.all():
        raise DataError(f"template {numbers[lengths.argmin()]} has length zero; are its detector scores 0?")
    return Templates(numbers, (sums / lengths).astype(np.float32))


def _rows_of(wanted: Sequence[str], names: Sequence[str]) -> Labels:
    row_of = {name: row for row, name in enumerate(names)}
    missing = [name for name in wanted if name not in row_of]
    if missing:
        raise DataError(f"{len(missing)} of {len(wanted)} images have no embedding ({missing[0]}, ...); embed them too")
    return np.array([row_of[name] for name in wanted], np.int64)


def template_distances(templates: Templates, pairs: TemplatePairs) -> Distances:
    """Return 2 - 2 cos of each pair of templates.

    Most pairs share their first template with thousands of others, so they are read from tiles of a matrix product.
    """
    first, place = np.unique(templates.rows(pairs.first), return_inverse=True)
    second = templates.rows(pairs.second)
    order = np.argsort(place, kind="stable")
    starts = range(0, len(first), _TEMPLATES)
    distances = np.empty(len(second))
    for start, chosen in zip(starts, np.split(order, np.searchsorted(place[order], starts[1:])), strict=True):
        cosines = templates.embeddings[first[start : start + _TEMPLATES]] @ templates.embeddings.T
        distances[chosen] = 2 - 2 * cosines[place[chosen] - start, second[chosen]].astype(np.float64)
    return distances


def verify(distances: Distances, pairs: TemplatePairs) -> list[TarAtFar]:
    """Return the true accept rates of the 1:1 protocol, at those of `FAR_TARGETS` that the pairs suffice for.

    InsightFace's script takes the point of the curve whose rate is nearest to the target, which may exceed it.
    """
    return measurable_tars(distances, pairs.same, FAR_TARGETS)


def identify(templates: Templates, protocol: SearchProtocol) -> Identification:
    """Search every probe in both galleries (Maze et al., "IARPA Janus Benchmark - C", ICB 2018).

    With n non-mated searches, the threshold for a target is the floor(n * target)-th highest of their best scores, and
    a hit has to score above it, as in InsightFace's `evaluation_1N`. Raises `DataError` when a gallery has none of
    the probes' subjects, or all.
    """
    results = [_search(templates, gallery, protocol.probes) for gallery in protocol.galleries]
    num_mated = sum(one.num_mated for one in results)
    tpirs = [{one.target_fpir: one.tpir for one in result.tpirs} for result in results]
    return Identification(
        galleries=results,
        found_by_rank={
            rank: sum(one.found_by_rank[rank] * one.num_mated for one in results) / num_mated for rank in RANKS
        },
        tpir_by_fpir={
            target: sum(one[target] for one in tpirs) / len(tpirs)
            for target in FPIR_TARGETS
            if all(target in one for one in tpirs)
        },
    )


def _search(templates: Templates, gallery: Subjects, probes: Subjects) -> GallerySearch:
    order = np.argsort(gallery.subjects)
    subjects = gallery.subjects[order]
    is_mated = np.isin(probes.subjects, subjects)
    num_mated = int(is_mated.sum())
    if num_mated in (0, len(is_mated)):
        raise DataError(
            f"{num_mated} of {len(is_mated)} probes have a mate in the gallery; there have to be both kinds"
        )
    enrolled = templates.embeddings[templates.rows(gallery.templates[order])]
    searched = templates.embeddings[templates.rows(probes.templates)]
    mates = np.where(is_mated, np.searchsorted(subjects, probes.subjects), -1)
    blocks = [slice(start, start + _PROBES) for start in range(0, len(searched), _PROBES)]
    found = [_search_block(searched[block] @ enrolled.T, mates[block]) for block in blocks]
    mate, rank, best_other = (np.concatenate(parts) for parts in zip(*found, strict=True))
    ranks = rank[is_mated]
    return GallerySearch(
        num_enrolled=len(enrolled),
        num_mated=num_mated,
        num_non_mated=len(is_mated) - num_mated,
        found_by_rank={one: float((ranks <= one).mean()) for one in RANKS},
        tpirs=_tpirs(np.where(ranks == 1, mate[is_mated], -np.inf), best_other[~is_mated]),
    )


def _search_block(cosines: npt.NDArray[np.float32], mates: Labels) -> tuple[Embeddings, Labels, Embeddings]:
    """Return of each search the mate's score and rank, and the best score of another; `mates` is -1 for no mate."""
    searches = np.arange(len(mates))
    mate = cosines[searches, mates]
    cosines[searches[mates >= 0], mates[mates >= 0]] = -np.inf
    return mate, 1 + (cosines >= mate[:, None]).sum(1), cosines.max(1)


def _tpirs(scores_of_first: npt.NDArray[np.float32], non_mated: npt.NDArray[np.float32]) -> list[Tpir]:
    """Return the rates, given each mated search's score where the mate comes first, and non-mated ones' best scores."""
    highest = np.sort(non_mated)[::-1]
    tpirs = []
    for target in FPIR_TARGETS:
        if allowed := accepts_within(target, len(highest)):
            threshold = highest[allowed - 1]
            fpir, tpir = (float((scores > threshold).mean()) for scores in (highest, scores_of_first))
            tpirs.append(Tpir(target_fpir=target, fpir=fpir, tpir=tpir, threshold=float(threshold)))
    return tpirs
