"""Who is enrolled: templates of known identities, an identity's side by side."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from eval.embed import Embeddings
from eval.protocols import Labels
from shardgen.errors import DataError

Template = Literal["mean", "each", "single"]


@dataclass(frozen=True)
class Gallery:
    """Enrolled templates of length 1."""

    templates: Embeddings
    identities: Labels
    """`[templates]`: identity numbers; equal ones stand side by side."""

    @cached_property
    def starts(self) -> Labels:
        """`[enrolled + 1]`: where each identity's templates begin, and the end."""
        changes = np.flatnonzero(self.identities[1:] != self.identities[:-1]) + 1
        return np.concatenate([[0], changes, [len(self.identities)]])

    @cached_property
    def enrolled(self) -> Labels:
        """The identity numbers, each once."""
        return self.identities[self.starts[:-1]]

    def positions(self, identities: Labels) -> Labels:
        """Return where identities stand among the enrolled; -1 for those that do not."""
        order = np.argsort(self.enrolled, kind="stable")
        found = np.searchsorted(self.enrolled, identities, sorter=order)
        positions = order[np.minimum(found, len(order) - 1)]
        return np.where(self.enrolled[positions] == identities, positions, -1)

    def part(self, positions: Labels) -> "Gallery":
        """Return the gallery of some of the enrolled, in the order given."""
        counts = np.diff(self.starts)[positions]
        before = np.cumsum(counts) - counts
        rows = np.arange(counts.sum()) + np.repeat(self.starts[positions] - before, counts)
        return Gallery(self.templates[rows], self.identities[rows])


def enrol(embeddings: Embeddings, identities: Labels, template: Template = "mean") -> Gallery:
    """Return a gallery of all identities that occur, ascending.

    `mean` makes one template of an identity's images, their mean of length 1; `each` makes every image a template;
    `single` promises one image an identity, and raises `DataError` where there are more.
    """
    enrolled, rows, counts = np.unique(identities, return_inverse=True, return_counts=True)
    if template == "single" and counts.max() > 1:
        raise DataError(
            f"{(counts > 1).sum()} of {len(enrolled)} identities are enrolled more than once, most often identity "
            f"number {enrolled[counts.argmax()]}, {counts.max()} times; leave one image each, or enrol by mean or each"
        )
    if template != "mean":
        order = np.argsort(identities, kind="stable")
        return Gallery(embeddings[order], identities[order])
    sums = np.zeros((len(enrolled), embeddings.shape[1]), np.float32)
    np.add.at(sums, rows, embeddings)
    return Gallery(sums / np.linalg.norm(sums, axis=1, keepdims=True), enrolled)
