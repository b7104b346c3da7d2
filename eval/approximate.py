"""Approximate search by IVF-PQ, for looking around in galleries too large for exact search; it says what it loses.

A mate that it misses inflates FNIR and an impostor that it misses deflates FPIR, so no reported figure comes from here.
"""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from eval.embed import Embeddings
from eval.gallery import Gallery
from eval.protocols import Labels
from eval.search import Scores, SearchOptions, search
from shardgen.errors import UsageError

_CODED_DIMENSIONS = 8
_CHECKED_PROBES = 1000
_TRAINING_TEMPLATES_PER_LIST = 39  # what faiss asks for


@dataclass(frozen=True)
class Approximate:
    """What was found, and how much of it is right."""

    candidates: Labels
    """`[probes, candidates]`: identities of the best templates found, best first; -1 where fewer were found."""
    scores: Scores
    """`[probes, candidates]`: exact scores of those templates; NaN where fewer were found."""
    recall: float
    """Share of (at most 1,000) probes whose exact best identity is among the candidates."""


def approximate_search(
    gallery: Gallery, probes: Embeddings, candidates: int = 10, visited: float = 0.05, seed: int = 0
) -> Approximate:
    """Search the lists nearest to each probe, a share of all, by codes of one byte for 8 dimensions.

    Raises `UsageError` when the embedding's size is no multiple of 8 or the gallery too small to be coded.
    """
    number, size = gallery.templates.shape
    if size % _CODED_DIMENSIONS or number < 256 * _TRAINING_TEMPLATES_PER_LIST:
        raise UsageError(
            f"{number} templates of {size} are not for approximate search: it takes a multiple of {_CODED_DIMENSIONS} "
            f"and {256 * _TRAINING_TEMPLATES_PER_LIST} templates; search exactly"
        )
    lists = min(int(4 * number**0.5), number // _TRAINING_TEMPLATES_PER_LIST)
    index: Any = faiss.index_factory(size, f"IVF{lists},PQ{size // _CODED_DIMENSIONS}np", faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = index.pq.cp.seed = seed
    index.nprobe = max(int(visited * lists), 1)
    index.train(gallery.templates)
    index.add(gallery.templates)
    _, rows = index.search(np.ascontiguousarray(probes), candidates)
    scores = np.einsum("pe,pke->pk", probes, gallery.templates[rows])
    scores[rows < 0] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")
    rows, scores = (np.take_along_axis(one, order, 1) for one in (rows, scores))
    found = np.where(rows >= 0, gallery.identities[rows], -1)
    return Approximate(found, np.where(rows >= 0, scores, np.nan), _recall(gallery, probes, found))


def _recall(gallery: Gallery, probes: Embeddings, found: Labels) -> float:
    some = np.unique(np.linspace(0, len(probes) - 1, _CHECKED_PROBES).astype(int))
    nobody = np.full(len(some), -1)
    best = search(gallery, probes[some], nobody, SearchOptions(candidates=1)).candidates
    return float((found[some] == best).any(1).mean())
