"""Closed-set 1:N identification: does the mate come first among all enrolled identities?

Exact search with faiss. A template is the mean of an identity's gallery embeddings, normalised.
"""

from dataclasses import dataclass

import faiss
import numpy as np

from eval.embed import Embeddings
from eval.protocols import Labels


@dataclass(frozen=True)
class Gallery:
    """One unit template an enrolled identity."""

    templates: Embeddings
    identities: Labels
    """`[templates]`: sorted identity numbers."""


def enrol(embeddings: Embeddings, identities: Labels) -> Gallery:
    """Return a gallery of one template for each identity that occurs."""
    enrolled, rows = np.unique(identities, return_inverse=True)
    sums = np.zeros((len(enrolled), embeddings.shape[1]), np.float32)
    np.add.at(sums, rows, embeddings)
    return Gallery(sums / np.linalg.norm(sums, axis=1, keepdims=True), enrolled)


def mate_ranks(gallery: Gallery, probes: Embeddings, identities: Labels, max_rank: int) -> Labels:
    """Return the rank, from 1, at which each probe's mate is found; max_rank + 1 when it is not.

    Every probe must have its mate in the gallery (closed set, ISO/IEC 19795-1).
    """
    assert np.isin(identities, gallery.identities).all()
    index = faiss.IndexFlatIP(gallery.templates.shape[1])
    index.add(gallery.templates)
    _, found = index.search(np.ascontiguousarray(probes), min(max_rank, len(gallery.templates)))
    is_mate = gallery.identities[found] == identities[:, None]
    return np.where(is_mate.any(1), is_mate.argmax(1) + 1, max_rank + 1)


def identification_rate(ranks: Labels, rank: int) -> float:
    """Return the share of probes whose mate is found at this rank or before."""
    return float((ranks <= rank).mean())
