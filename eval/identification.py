"""Closed-set identification: does the mate come first among all enrolled identities, and how soon otherwise?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eval.embed import Embeddings
from eval.gallery import Gallery
from eval.open_set import OpenSet, open_set
from eval.protocols import Labels
from eval.search import SearchOptions, SearchResult, search_growing
from eval.tiles import ALONE, Workers
from shardgen.errors import DataError


@dataclass(frozen=True)
class ClosedSet:
    """Identification of the probes whose identity is enrolled (ISO/IEC 19795-1)."""

    cmc: npt.NDArray[np.float64]
    """`[depth]`: the share of probes whose mate has rank 1, ranks 1 to 2, ... (cumulative match characteristic)."""
    num_probes: int
    """Those with a mate; the figures are theirs."""
    num_without_mate: int
    """Those left out."""

    def rate(self, rank: int) -> float:
        """Return the share of probes whose mate is found at this rank or before."""
        return float(self.cmc[rank - 1])


def closed_set(result: SearchResult, depth: int) -> ClosedSet:
    """Return the cumulative match characteristic up to a depth; `result.mated` says which probes it leaves out.

    Raises `DataError` when no probe has its identity enrolled.
    """
    ranks = result.mate_ranks[result.mated]
    if not len(ranks):
        raise DataError(f"none of the {len(result.mated)} probes has its identity in the gallery; enrol theirs")
    found = np.bincount(np.minimum(ranks, depth + 1), minlength=depth + 2)[1 : depth + 1]
    return ClosedSet(np.cumsum(found) / len(ranks), len(ranks), len(result.mated) - len(ranks))


@dataclass(frozen=True)
class GallerySize:
    """How identification fares in a gallery of some size."""

    size: int
    """Enrolled identities other than the probe's."""
    closed: ClosedSet
    open: OpenSet | None
    """None when every probe has a mate."""


def search_sizes(
    gallery: Gallery,
    probes: Embeddings,
    identities: Labels,
    sizes: Sequence[int],
    seed: int,
    depth: int = 1,
    workers: Workers = ALONE,
) -> list[GallerySize]:
    """Return the cost of a growing gallery: nested random draws from the enrolled, ascending sizes, one pass.

    Each probe is searched among the draw and its mate, as in MegaFace, so that all sizes are measured on the same
    probes. Takes a copy of the gallery.
    """
    drawn = gallery.part(np.random.default_rng(seed).permutation(len(gallery.enrolled)))
    results = search_growing(drawn, probes, identities, sizes, SearchOptions(candidates=1), workers)
    return [
        GallerySize(size, closed_set(one, depth), None if one.mated.all() else open_set(one))
        for size, one in zip(sizes, results, strict=True)
    ]


def identification_rate(ranks: Labels, rank: int) -> float:
    """Return the share of probes whose mate is found at this rank or before."""
    return float((ranks <= rank).mean())
