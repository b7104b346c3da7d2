"""The plan: global batch k as a pure function of (shard sets, mix, seed, batch size, k).

Quotas say how many samples of each stratum a batch takes, the keyed permutation which, and another
one shuffles them over the batch's slots, so that on average every rank's slice holds every stratum's share.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.catalog import Catalog, open_catalog
from pipeline.config import MixConfig, SetConfig
from pipeline.hashing import derive_key
from pipeline.mixing import Quotas
from pipeline.order import order_of
from shardgen.errors import UsageError
from shardgen.tags import UNKNOWN

Ids = npt.NDArray[np.int64]
Members = range | npt.NDArray[np.uint32]
"""Sample ids; a range where they are consecutive, so that a plain set costs no memory."""


@dataclass(frozen=True)
class Stratum:
    """Samples that share a quota: a set, or a set's samples with one value of a tag."""

    set_name: str
    value: str | None
    """Value of the set's balance tag, or None for the whole set."""
    share: Fraction
    members: Members

    @property
    def name(self) -> str:
        """How plans show it."""
        return self.set_name if self.value is None else f"{self.set_name}/{self.value}"

    def ids_at(self, places: Ids) -> Ids:
        """Return the sample ids at some places of the membership."""
        if isinstance(self.members, range):
            return places + self.members.start
        return self.members[places].astype(np.int64)


@dataclass(frozen=True)
class PlannedBatch:
    """Which samples a batch holds, slot by slot, and in which pass over its stratum each one is."""

    sample_ids: Ids
    passes: Ids


class Plan:
    """A mix of a catalog's sets, cut into global batches."""

    def __init__(self, catalog: Catalog, mix: MixConfig, seed: int, batch_size: int) -> None:
        self.seed = seed
        self.batch_size = batch_size
        self.strata = _strata(catalog, mix)
        self.left_out = _left_out(mix, catalog, self.strata)
        """Set -> samples that take no part, their balance tag being unknown."""
        self.catalog = _relabelled(catalog, self.strata) if self.left_out else catalog
        """The samples; labels count the identities that take part, -1 is one that does not."""
        self.state_key = {
            "data set": catalog.digest,
            "mix": mix.model_dump_json(exclude={"sets": {"__all__": {"path"}}}),
            "seed": seed,
            "batch size": batch_size,
        }
        """What a saved position depends on, each by the name a person knows it by."""
        self._quotas = Quotas([stratum.share for stratum in self.strata], batch_size)
        self.batches_per_epoch = _batches_per_epoch(self.strata, mix, batch_size)

    def counts_before(self, batch: int) -> tuple[int, ...]:
        """Return how many samples each stratum gives to the batches before this one."""
        return self._quotas.before(batch)

    def to_json(self) -> dict[str, Any]:
        """Return what every stratum gives to a batch and an epoch."""
        per_epoch = self.counts_before(self.batches_per_epoch)
        return {
            "batch_size": self.batch_size,
            "batches_per_epoch": self.batches_per_epoch,
            "left_out": self.left_out,
            "strata": [
                {
                    "stratum": stratum.name,
                    "samples": len(stratum.members),
                    "share": float(stratum.share),
                    "per_batch": float(stratum.share * self.batch_size),
                    "per_epoch": count,
                    "passes_per_epoch": count / len(stratum.members),
                }
                for stratum, count in zip(self.strata, per_epoch, strict=True)
            ],
        }

    def lines(self) -> list[str]:
        """Return the same for a person."""
        return [
            f"{'stratum':24} {'samples':>9} {'share':>7} {'a batch':>8} {'an epoch':>9} {'passes':>7}",
            *(
                f"{row['stratum']:24} {row['samples']:9} {row['share']:7.2%} {row['per_batch']:8.2f} "
                f"{row['per_epoch']:9} {row['passes_per_epoch']:7.2f}"
                for row in self.to_json()["strata"]
            ),
            *(
                f"{number} samples of {name} are unknown on its balance axis and take no part"
                for name, number in self.left_out.items()
            ),
            f"an epoch is {self.batches_per_epoch} batches of {self.batch_size}",
        ]

    def batch(self, number: int) -> PlannedBatch:
        """Return global batch `number`, counted from 0 over all epochs."""
        starts, ends = self._quotas.before(number), self._quotas.before(number + 1)
        ids: list[Ids] = []
        passes: list[Ids] = []
        for stratum, start, end in zip(self.strata, starts, ends, strict=True):
            positions = np.arange(start, end)
            size = len(stratum.members)
            places = order_of(positions, size, derive_key(self.seed, "order", stratum.name))
            ids.append(stratum.ids_at(places))
            passes.append(positions // size)
        slots = order_of(np.arange(self.batch_size), self.batch_size, derive_key(self.seed, "slots", number))
        return PlannedBatch(np.concatenate(ids)[slots], np.concatenate(passes)[slots])


def open_plan(mix: MixConfig, seed: int, batch_size: int) -> Plan:
    """Open the sets of a mix and lay out its batches; raise `UsageError` or `DataError` when they are at fault."""
    folders = {name: one.path for name, one in mix.sets.items()}
    (often, times), *_ = Counter(path.resolve() for path in folders.values()).most_common(1)
    if times > 1:
        raise UsageError(f"{often} is in the mix under {times} names; each identity would get {times} labels, give one")
    return Plan(open_catalog(folders), mix, seed, batch_size)


def _strata(catalog: Catalog, mix: MixConfig) -> list[Stratum]:
    """Split each set's share equally over its parts; without shares, sets count by the samples taking part."""
    parts = {name: _parts_of_set(catalog, name, one) for name, one in mix.sets.items()}
    sizes = {name: sum(len(members) for members in values.values()) for name, values in parts.items()}
    natural = {name: Fraction(size, sum(sizes.values())) for name, size in sizes.items()}
    return [
        Stratum(name, value, (one.share or natural[name]) / len(parts[name]), members)
        for name, one in mix.sets.items()
        for value, members in parts[name].items()
    ]


def _parts_of_set(catalog: Catalog, name: str, one: SetConfig) -> dict[str | None, Members]:
    """Return a set's samples by the value of its balance tag, or all of them under None."""
    ids = catalog.ids_of(name)
    if one.balance is None:
        return {None: ids}
    values = catalog.axes.get(one.balance, [])
    codes = catalog.tags[one.balance][ids.start : ids.stop] if values else np.zeros(0, np.int16)
    known = [code for code in np.unique(codes).tolist() if values[code] != UNKNOWN]
    if not known:
        axes = ", ".join(catalog.axes)
        raise UsageError(f"set {name} has no {one.balance} tags to balance over; tag axes are: {axes}")
    return {values[code]: (np.flatnonzero(codes == code) + ids.start).astype(np.uint32) for code in known}


def _left_out(mix: MixConfig, catalog: Catalog, strata: Sequence[Stratum]) -> dict[str, int]:
    taking_part: Counter[str] = Counter()
    for stratum in strata:
        taking_part[stratum.set_name] += len(stratum.members)
    without = {name: len(catalog.ids_of(name)) - taking_part[name] for name in mix.sets}
    return {name: number for name, number in without.items() if number}


def _relabelled(catalog: Catalog, strata: Sequence[Stratum]) -> Catalog:
    """Number the identities that take part from 0, so that a head has no class without a sample."""
    takes_part = np.zeros(len(catalog), np.bool_)
    for stratum in strata:
        takes_part[np.asarray(stratum.members)] = True
    used = np.unique(catalog.label[takes_part])
    label = np.full(len(catalog), -1, np.int32)
    label[takes_part] = np.searchsorted(used, catalog.label[takes_part])
    return replace(catalog, label=label, identities=[catalog.identities[old] for old in used.tolist()])


def _batches_per_epoch(strata: Sequence[Stratum], mix: MixConfig, batch_size: int) -> int:
    """Return after how many whole batches an epoch ends, at least one."""
    if mix.epoch in ("longest", "shortest"):
        whole = [ceil(len(stratum.members) / (stratum.share * batch_size)) for stratum in strata]
        return max(whole) if mix.epoch == "longest" else min(whole)
    samples = mix.epoch if isinstance(mix.epoch, int) else sum(len(stratum.members) for stratum in strata)
    return max(1, samples // batch_size)
