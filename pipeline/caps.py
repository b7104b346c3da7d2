"""Which identities of a set, and which images of an identity, stay where a recipe caps them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.catalog import Catalog
from pipeline.config import Cap
from pipeline.hashing import derive_key, mix64
from pipeline.members import group_by
from pipeline.order import Ids
from pipeline.tables import KEY

Labels = npt.NDArray[np.int32]
"""Identity of each sample of a set, from 0."""
Ranking = Callable[[Ids], npt.NDArray[Any]]
"""Positions in a set -> numbers, of which the lowest stay; NaN comes after all."""

_BLOCK = 1 << 22  # what is counted at a time: np.bincount makes int64 of all it is given


def image_ranking(cap: Cap, catalog: Catalog, set_name: str, seed: int) -> Ranking:
    """Return how images are ranked; raise `UsageError` when the set has no such column."""
    if cap.by == "draw":
        key = np.uint64(derive_key(seed, "images", set_name))
        return lambda positions: mix64(positions.astype(np.uint64) ^ key)
    column = _column(cap, catalog, set_name)
    return lambda positions: column[positions]


def identity_ranking(cap: Cap, catalog: Catalog, set_name: str, labels: Labels, seed: int) -> npt.NDArray[Any]:
    """Return a number for each identity, of which the lowest stay; raise `UsageError` as `image_ranking` does."""
    numbers = np.arange(labels.max() + 1)
    if cap.by == "first":
        return numbers
    if cap.by == "draw":
        return mix64(numbers.astype(np.uint64) ^ np.uint64(derive_key(seed, "identities", set_name)))
    column = _column(cap, catalog, set_name)
    known = ~np.isnan(column)
    with np.errstate(invalid="ignore"):  # an identity of which nothing is known has the mean NaN
        sums = count_by(labels, len(numbers), np.where(known, column, 0))
        means: npt.NDArray[np.float64] = sums / count_by(labels, len(numbers), known)
    return means


def _column(cap: Cap, catalog: Catalog, set_name: str) -> npt.NDArray[Any]:
    name = KEY if cap.by == "first" else cap.by
    column = catalog.columns(set_name, [name])[name]
    return column if cap.by == "first" or cap.order == "ascending" else -column


def images_beyond(most: int, labels: Labels, positions: Ids, rank: Ranking) -> Ids:
    """Return those of some positions that are not among the first so many of their identity."""
    members, starts = group_by(labels[positions])
    counts, beyond = np.diff(starts), [np.zeros(0, np.int64)]
    for count in np.unique(counts[counts > most]).tolist():  # identities of one size are the rows of one matrix
        rows = positions[members[starts[:-1][counts == count, None] + np.arange(count)]]
        order = np.argsort(rank(rows), axis=1, kind="stable")
        beyond.append(np.take_along_axis(rows, order[:, most:], axis=1).ravel())
    return np.concatenate(beyond)


def identities_within(
    most: int, groups: npt.NDArray[np.int64], parts: npt.NDArray[np.float64], ranks: npt.NDArray[Any]
) -> npt.NDArray[np.bool_]:
    """Return which identities stay, spread over their groups in proportion to the groups' parts.

    `groups` has the group of each identity, `len(parts)` where it belongs to none. The place of an identity is
    (how many of its group come before it + 1/2) / part of the group, and the first `most` places stay; so a group that
    has too few leaves its room to the others.
    """
    order = np.argsort(ranks, kind="stable")
    order = order[np.argsort(groups[order], kind="stable")]
    counts = np.bincount(groups, minlength=len(parts) + 1)
    before = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    in_a_group = order[: len(order) - counts[-1]]
    places = (before[: len(in_a_group)] + 0.5) / parts[groups[in_a_group]]
    within = np.zeros(len(groups), np.bool_)
    within[in_a_group[np.argsort(places, kind="stable")[:most]]] = True
    return within


def groups_of_identities(labels: Labels, codes: npt.NDArray[Any], num_groups: int) -> npt.NDArray[np.int64]:
    """Return the group that most of an identity's samples are in, the first of equals; `num_groups` for none."""
    num_identities = int(labels.max()) + 1
    most, groups = np.zeros(num_identities, np.int64), np.full(num_identities, num_groups)
    for number in range(num_groups):
        counts = count_by(labels, num_identities, codes == number)
        groups[counts > most] = number
        most = np.maximum(most, counts)
    return groups


def count_by(codes: npt.NDArray[Any], num_codes: int, weights: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
    """Return how often each code occurs, or the sum of its weights."""
    counts = np.zeros(num_codes, np.int64 if weights is None else np.float64)
    for start in range(0, len(codes), _BLOCK):
        block = slice(start, start + _BLOCK)
        counts += np.bincount(codes[block], None if weights is None else weights[block], num_codes)
    return counts
