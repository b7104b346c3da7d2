"""What should not be in a set, or in two sets at once: the same image, the same photograph, the same person.

Every finding is a pair of images that a person can look at. A group of n copies is told by n - 1 pairs that connect
it, the closest ones, so that a thousand copies make a thousand pairs and not half a million.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from shardgen.audit_people import LISTED, Embeddings, Overlap, overlapping_identities
from shardgen.audit_samples import Finding, Numbers, Pair, Samples, open_samples, table
from shardgen.perceptual import MAX_DISTANCE, Edges, hash_images, nearest_edges

_NAMED = 10


@dataclass(frozen=True)
class Duplicates:
    """Images that are there more than once."""

    num_images: int
    """Images that were compared."""
    num_groups: int
    num_redundant: int
    """Images that could go: all but one of each group."""
    num_across_sets: int
    """Groups with images in two sets: of training and test set, a leak."""
    num_mislabelled: int
    """Groups that one set has under two identities: an error in its labels."""
    pairs: Sequence[Pair]
    """At most 10,000 of those that connect the groups: one of each group first, label errors first among these."""

    def lines(self, title: str) -> list[str]:
        """Return what a person reads."""
        counts = (
            f"{self.num_redundant} of {self.num_images} images could go, in {self.num_groups} groups: "
            f"{self.num_across_sets} across sets, {self.num_mislabelled} under two identities of one set"
        )
        errors = " (errors in its labels)" if self.num_mislabelled else ""
        return [
            f"{title}: {counts}{errors}" if self.num_groups else f"{title}: none",
            *table(self.pairs, self.num_redundant),
        ]


@dataclass(frozen=True)
class SharedNames:
    """Identity names that two sets have in common."""

    sets: tuple[str, str]
    names: Sequence[str]

    @property
    def only_numbers(self) -> bool:
        """Whether the names are numbers, as every converter counts its identities: they say little."""
        return all(name.isdecimal() for name in self.names)

    def line(self) -> str:
        """Return what a person reads."""
        note = "; all are numbers, which need not mean the same people" if self.only_numbers else ""
        shown = ", ".join(self.names[:_NAMED]) + (", ..." if len(self.names) > _NAMED else "")
        return f"identity names in both {' and '.join(self.sets)}: {len(self.names)}{note}: {shown}"


@dataclass(frozen=True)
class Audit:
    """All findings in some sets."""

    sets: Sequence[str]
    num_samples: int
    exact: Duplicates
    near: Duplicates | None
    """None when it was not asked for."""
    max_distance: int
    """Bits in which the hashes of near copies differ at most."""
    shared_names: Sequence[SharedNames]
    overlap: Overlap | None
    """None without embeddings."""

    @property
    def clean(self) -> bool:
        """Whether nothing was found; shared names count unless they are numbers."""
        named = any(not one.only_numbers for one in self.shared_names)
        near, alike = (
            self.near is not None and self.near.num_groups,
            self.overlap is not None and self.overlap.num_pairs,
        )
        return not (self.exact.num_groups or near or alike or named)

    def lines(self) -> list[str]:
        """Return what a person reads."""
        near = self.near.lines(f"near copies (at most {self.max_distance} bits differ)") if self.near else []
        names = [one.line() for one in self.shared_names] or ["identity names in two sets: none"]
        return [
            f"{', '.join(self.sets)}: {self.num_samples} samples",
            *self.exact.lines("copies"),
            *near,
            *(names if len(self.sets) > 1 else []),
            *(self.overlap.lines() if self.overlap else []),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return everything, for machines."""
        return {"clean": self.clean, **asdict(self)}

    def pairs(self, of_each: int) -> list[Pair]:
        """Return the first pairs of each finding, for `pair_sheet`."""
        found = [self.exact.pairs, self.near.pairs if self.near else [], self.overlap.pairs if self.overlap else []]
        return [pair for pairs in found for pair in pairs[:of_each]]


def audit(
    paths: Sequence[Path],
    *,
    near: bool = True,
    max_distance: int = MAX_DISTANCE,
    workers: int = 1,
    embeddings: Sequence[Embeddings] | None = None,
    threshold: float | None = None,
) -> Audit:
    """Look for everything in the sets at these paths; nothing is changed.

    `embeddings` are those of each set, `[samples, dim]` of length 1 in the set's order; `threshold` is the cosine above
    which two identities pass for one person, taken from the data unless given. Raises `UsageError` for a set that is
    given twice, and where `close_pairs` or `overlapping_identities` do.
    """
    samples = open_samples(paths)
    return Audit(
        sets=samples.names,
        num_samples=len(samples.contents),
        exact=exact_duplicates(samples),
        near=near_duplicates(samples, max_distance, workers) if near else None,
        max_distance=max_distance,
        shared_names=shared_names(samples),
        overlap=None if embeddings is None else overlapping_identities(samples, embeddings, threshold),
    )


def exact_duplicates(samples: Samples) -> Duplicates:
    """Group the images that have the same bytes, by their hashes."""
    copies = np.flatnonzero(samples.originals != np.arange(len(samples.contents)))
    edges = Edges(samples.originals[copies], copies, np.zeros(len(copies), np.int64))
    return _duplicates("copy", samples, len(samples.contents), edges)


def near_duplicates(samples: Samples, max_distance: int = MAX_DISTANCE, workers: int = 1) -> Duplicates:
    """Group the images that look the same; of those with the same bytes only the first is looked at."""
    rows = np.unique(samples.originals)
    bounds = np.searchsorted(rows, samples.starts).tolist()
    parts = [
        (one.folder, rows[bounds[number] : bounds[number + 1]] - samples.starts[number])
        for number, one in enumerate(samples.sets)
    ]
    found = nearest_edges(hash_images(parts, workers), max_distance)
    return _duplicates("near copy", samples, len(rows), Edges(rows[found.first], rows[found.second], found.distance))


def shared_names(samples: Samples) -> list[SharedNames]:
    """Return the names that have samples in two sets, for each two that have any in common."""
    used, all_names = np.unique(samples.identities), samples.identity_names
    ends = np.cumsum([len(one.manifest.identities) for one in samples.sets])
    parts = np.split(used, np.searchsorted(used, ends[:-1]))
    names = [{all_names[number] for number in part.tolist()} for part in parts]
    named = zip(samples.names, names, strict=True)
    shared = [
        SharedNames((one, other), sorted(ones & others)) for (one, ones), (other, others) in combinations(named, 2)
    ]
    return [one for one in shared if one.names]


def _duplicates(finding: Finding, samples: Samples, num_images: int, edges: Edges) -> Duplicates:
    """Count the groups that the pairs connect, and describe the pairs."""
    ends = np.stack([edges.first, edges.second])
    members, place = np.unique(ends, return_inverse=True)
    shape = len(members), len(members)
    num_groups, groups = connected_components(coo_array((np.ones(len(edges)), place.reshape(2, -1)), shape=shape))
    sets, identities = samples.set_numbers[members], samples.identities[members]
    in_one_set = _several(groups * len(samples.sets) + sets, identities)
    listed = _telling_first(edges, groups[place.reshape(2, -1)[0]], samples)[:LISTED]
    return Duplicates(
        num_images=num_images,
        num_groups=int(num_groups),
        num_redundant=len(edges),
        num_across_sets=len(_several(groups, sets)),
        num_mislabelled=len(np.unique(in_one_set // len(samples.sets))),
        pairs=samples.pairs(finding, edges.first[listed], edges.second[listed], edges.distance[listed]),
    )


def _several(groups: Numbers, values: Numbers) -> Numbers:
    """Return the groups that have more than one value."""
    distinct, times = np.unique(np.unique(np.stack([groups, values]), axis=1)[0], return_counts=True)
    return distinct[times > 1]


def _telling_first(edges: Edges, groups: Numbers, samples: Samples) -> Numbers:
    """Order pairs: one of each group first; label errors, then two sets, then one identity; closest first."""
    one_set = samples.set_numbers[edges.first] == samples.set_numbers[edges.second]
    one_identity = samples.identities[edges.first] == samples.identities[edges.second]
    relation = np.where(one_set, 2 * one_identity, 1)
    order = np.lexsort((edges.second, edges.first, edges.distance, relation))
    _, leading = np.unique(groups[order], return_index=True)
    is_leading = np.isin(np.arange(len(order)), leading)
    return np.concatenate([order[is_leading], order[~is_leading]])
