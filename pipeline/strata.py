"""What of a set takes part in a mix, and the strata that it falls into: samples that share a quota.

Every sample gets the number of its group (its values on the axes of `balance`), or one more than there are when
it stays out; caps move further samples there; what is left is laid out group by group. All of it in columns.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import caps
from pipeline.catalog import Catalog
from pipeline.config import Cap, MixConfig, SetConfig
from pipeline.members import Identities, Images, Members, Rows, Windows
from shardgen.errors import UsageError
from shardgen.tags import UNKNOWN

_BLOCK = 1 << 20

Values = tuple[str, ...]
"""A group: a value for each entry of `balance`, a/b where the entry is a combination of axes."""
Balance = Mapping[str, str | Mapping[str, Fraction]]


@dataclass(frozen=True)
class Stratum:
    """Samples that share a quota: a set, or a set's samples with certain values of tags."""

    set_name: str
    values: Values
    part: Fraction
    """Of its set's share."""
    members: Members

    @property
    def name(self) -> str:
        """How plans show it."""
        return "/".join((self.set_name, *self.values))


@dataclass(frozen=True)
class Selection:
    """What of a set takes part."""

    strata: Sequence[Stratum]
    left_out: Mapping[str, int]
    """Why samples take no part -> how many."""
    warnings: Sequence[str]
    """Where a cap cannot do what it says."""


def select(catalog: Catalog, set_name: str, mix: MixConfig, seed: int) -> Selection:
    """Choose and group a set's samples.

    Raises `UsageError` when the set lacks an axis, a value with a share, or a column to rank by, or when a cap leaves
    nothing of a group.
    """
    config = mix.sets[set_name]
    choice = _Choice(catalog, set_name, config.balance)
    if config.images_per_identity:
        choice.cap_images(config.images_per_identity, seed)
    if config.identities:
        choice.cap_identities(config.identities, seed)
    parts = choice.parts()
    strata = [
        Stratum(set_name, values, parts[values], _members(catalog, mix, config, ids))
        for values, ids in choice.ids_of_groups().items()
    ]
    return Selection(strata, choice.left_out, choice.warnings)


def _members(catalog: Catalog, mix: MixConfig, config: SetConfig, ids: Rows) -> Members:
    if mix.window_shards is not None:
        return Windows(ids, catalog.shard_starts, mix.window_shards)
    if config.sampling == "identity" or mix.per_identity > 1:
        rows = slice(ids.start, ids.stop) if isinstance(ids, range) else ids
        return Identities(ids, catalog.label[rows], mix.per_identity, equally=config.sampling == "identity")
    return Images(ids)


class _Choice:
    """A set's samples while it is being decided which take part."""

    def __init__(self, catalog: Catalog, set_name: str, balance: Balance) -> None:
        self._catalog, self._name, self._balance = catalog, set_name, balance
        self._ids = catalog.ids_of(set_name)
        cells, joint = _cells(catalog, set_name, balance)
        counts = caps.count_by(joint, len(cells)).tolist()
        there = Counter({values: count for values, count in zip(cells, counts, strict=True) if count})
        self._groups = list(self._split(there))
        numbers = {values: number for number, values in enumerate(self._groups)}
        out = len(self._groups)
        self._codes = np.array([numbers.get(values, out) for values in cells], np.min_scalar_type(out))[joint]
        self._counts = {values: there[values] for values in self._groups}
        self.left_out: Counter[str] = Counter()
        for values in there:
            if values not in numbers:
                self.left_out[_reason(values, balance)] += there[values]
        self.warnings: list[str] = []

    def _split(self, there: Mapping[Values, int]) -> dict[Values, Fraction]:
        return _split(there, list(self._balance.items()), f"set {self._name}")

    def parts(self) -> dict[Values, Fraction]:
        """Return each group's part of the set's share."""
        return self._split(self._counts)

    def ids_of_groups(self) -> dict[Values, Rows]:
        """Return the sample ids of each group, rising."""
        if list(self._counts.values()) == [len(self._ids)]:
            return dict.fromkeys(self._counts, self._ids)
        numbers = {values: number for number, values in enumerate(self._groups)}
        return {values: self._ids_of(numbers[values], count) for values, count in self._counts.items()}

    def _ids_of(self, group: int, count: int) -> npt.NDArray[np.uint32]:
        ids, found = np.empty(count, np.uint32), 0
        for start in range(0, len(self._codes), _BLOCK):  # positions are made as int64
            positions = np.flatnonzero(self._codes[start : start + _BLOCK] == group)
            ids[found : found + len(positions)] = positions + (self._ids.start + start)
            found += len(positions)
        return ids

    def _labels(self) -> caps.Labels:
        labels = self._catalog.label[self._ids.start : self._ids.stop]
        from_zero: caps.Labels = labels - labels.min()
        return from_zero

    def _leave_out(self, samples: npt.NDArray[Any], reason: str) -> None:
        before = sum(self._counts.values())
        self._codes[samples] = len(self._groups)
        counts = caps.count_by(self._codes, len(self._groups) + 1).tolist()
        self._counts = {values: count for values, count in zip(self._groups, counts, strict=False) if count}
        if number := before - sum(self._counts.values()):
            self.left_out[reason] = number

    def cap_images(self, cap: Cap, seed: int) -> None:
        """Keep the first images of each identity, of those that take part so far."""
        rank = caps.image_ranking(cap, self._catalog, self._name, seed)
        positions = np.flatnonzero(self._codes < len(self._groups))
        beyond = caps.images_beyond(cap.most, self._labels(), positions, rank)
        if not len(beyond):
            self.warnings.append(f"no identity of {self._name} has more than the {cap.most} images that may stay")
        before = list(self._counts)
        self._leave_out(beyond, f"over {cap.most} images per identity")
        self._refuse_empty(before, f"{cap.most} images per identity")

    def cap_identities(self, cap: Cap, seed: int) -> None:
        """Keep the first identities, spread over the groups as their parts are."""
        labels, parts = self._labels(), self.parts()
        homes = caps.groups_of_identities(labels, self._codes, len(self._groups))
        ranks = caps.identity_ranking(cap, self._catalog, self._name, labels, seed)
        shares = np.array([float(parts.get(values, 1)) for values in self._groups])  # 1 for what is empty already
        within = caps.identities_within(cap.most, homes, shares, ranks)
        self._leave_out(~within[labels], f"over {cap.most} identities")
        self._refuse_empty(list(parts), f"{cap.most} identities")
        self._warn_of_few(cap, homes, parts)

    def _refuse_empty(self, before: Sequence[Values], cap: str) -> None:
        if emptied := [values for values in before if values not in self._counts]:
            raise UsageError(
                f"{cap} of set {self._name} are too few to leave one in {'/'.join(emptied[0])}; "
                "raise the cap, or name the values that take part"
            )

    def _warn_of_few(self, cap: Cap, homes: npt.NDArray[np.int64], parts: Mapping[Values, Fraction]) -> None:
        there = dict(zip(self._groups, np.bincount(homes, minlength=len(self._groups)).tolist(), strict=False))
        if sum(there.values()) < cap.most:
            self.warnings.append(f"{self._name} has {sum(there.values())} identities where {cap.most} may stay")
            return
        self.warnings += [
            f"{'/'.join((self._name, *values))} has {there[values]} identities, its part of {cap.most} is "
            f"{float(cap.most * part):.6g}: others take its room"
            for values, part in parts.items()
            if there[values] < int(cap.most * part)
        ]


def _cells(catalog: Catalog, set_name: str, balance: Balance) -> tuple[list[Values], npt.NDArray[Any]]:
    """Return all combinations of values of the axes, and the position in them of each sample of a set."""
    entries = [key.split("/") for key in balance]
    axes = [axis for entry in entries for axis in entry]
    if missing := [axis for axis in axes if axis not in catalog.axes]:
        known = ", ".join(catalog.axes)
        raise UsageError(f"set {set_name} has no {missing[0]} tags to balance over; tag axes are: {known}")
    of_entries = [["/".join(values) for values in product(*(catalog.axes[axis] for axis in one))] for one in entries]
    ids = catalog.ids_of(set_name)
    joint = np.zeros(len(ids), np.min_scalar_type(prod(len(catalog.axes[axis]) for axis in axes)))
    for axis in axes:
        joint = joint * joint.dtype.type(len(catalog.axes[axis])) + catalog.codes(axis, ids).astype(joint.dtype)
    return list(product(*of_entries)), joint


def _split(there: Mapping[Values, int], balance: Sequence[tuple[str, Any]], whose: str) -> dict[Values, Fraction]:
    """Return each group's part: those of the first entry of `balance`, split further by the others."""
    if not balance:
        return {(): Fraction(1)}
    (axis, split), *others = balance
    inner: dict[str, dict[Values, int]] = {}
    for (value, *rest), count in there.items():
        inner.setdefault(value, {})[tuple(rest)] = count
    shares = _shares({value: sum(counts.values()) for value, counts in inner.items()}, axis, split, whose)
    return {
        (value, *rest): share * part
        for value, share in shares.items()
        for rest, part in _split(inner[value], others, f"{axis} {value} of {whose}").items()
    }


def _shares(
    there: Mapping[str, int], axis: str, split: str | Mapping[str, Fraction], whose: str
) -> Mapping[str, Fraction]:
    known = {value: count for value, count in there.items() if not _is_unknown(value)}
    if isinstance(split, Mapping):
        if missing := [value for value in split if value not in there]:
            raise UsageError(f"{whose} has nothing of {axis} {missing[0]}; there is {', '.join(there)}")
        return split
    if not known:
        raise UsageError(
            f"{whose} has no {axis} tags to balance over: all are unknown; give unknown a share, or name others"
        )
    if split == "equal":
        return dict.fromkeys(known, Fraction(1, len(known)))
    return {value: Fraction(count, sum(known.values())) for value, count in known.items()}


def _is_unknown(value: str) -> bool:
    return UNKNOWN in value.split("/")


def _reason(values: Values, balance: Balance) -> str:
    """Return why a group takes no part."""
    for value, (axis, split) in zip(values, balance.items(), strict=True):
        if isinstance(split, Mapping):
            if value not in split:
                return f"{axis} {value}, which has no share"
        elif _is_unknown(value):
            return f"{axis} unknown"
    raise AssertionError(values)
