"""The plan: global batch k as a pure function of (shard sets, mix, seed, batch size, k).

Quotas say how many samples of each stratum a batch takes, the keyed permutation which, and another
one shuffles them over the batch's slots, so that every rank's slice holds every stratum's share.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.catalog import Catalog
from pipeline.config import MixConfig, SetConfig
from pipeline.hashing import derive_key
from pipeline.mixing import Quotas
from pipeline.order import order_of
from shardgen.errors import UsageError
from shardgen.tags import UNKNOWN

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stratum:
    """Samples that share a quota: a set, or a set's samples with one value of a tag."""

    set_name: str
    value: str | None
    """Value of the set's balance tag, or None for the whole set."""
    share: Fraction
    members: range | npt.NDArray[np.uint32]
    """Sample ids; a range where they are consecutive, so that a plain set costs no memory."""

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
        self.catalog = catalog
        self.seed = seed
        self.batch_size = batch_size
        self.strata = list(_strata(catalog, mix))
        self.left_out = _left_out(mix, catalog, self.strata)
        """Set -> samples that take no part, their balance tag being unknown."""
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


def _strata(catalog: Catalog, mix: MixConfig) -> Iterator[Stratum]:
    num_total = sum(len(catalog.ids_of(name)) for name in mix.sets)
    for name, one in mix.sets.items():
        share = one.share or Fraction(len(catalog.ids_of(name)), num_total)
        yield from _strata_of_set(catalog, name, one, share)


def _strata_of_set(catalog: Catalog, name: str, one: SetConfig, share: Fraction) -> Iterator[Stratum]:
    ids = catalog.ids_of(name)
    if one.balance is None:
        yield Stratum(name, None, share, ids)
        return
    codes = catalog.tags.get(one.balance)
    present = [] if codes is None else np.unique(codes[ids.start : ids.stop]).tolist()
    known = [code for code in present if catalog.axes[one.balance][code] != UNKNOWN]
    if codes is None or not known:
        axes = ", ".join(axis for axis in catalog.axes) or "none"
        raise UsageError(f"set {name} has no {one.balance} tags to balance over; tag axes are: {axes}")
    for code in known:
        members = (np.flatnonzero(codes[ids.start : ids.stop] == code) + ids.start).astype(np.uint32)
        yield Stratum(name, catalog.axes[one.balance][code], share / len(known), members)


def _left_out(mix: MixConfig, catalog: Catalog, strata: Sequence[Stratum]) -> dict[str, int]:
    taking_part: Counter[str] = Counter()
    for stratum in strata:
        taking_part[stratum.set_name] += len(stratum.members)
    without = {name: len(catalog.ids_of(name)) - taking_part[name] for name in mix.sets}
    return {name: number for name, number in without.items() if number}


def _batches_per_epoch(strata: Sequence[Stratum], mix: MixConfig, batch_size: int) -> int:
    """Return after how many whole batches an epoch ends, at least one."""
    if mix.epoch in ("longest", "shortest"):
        whole = [ceil(len(stratum.members) / (stratum.share * batch_size)) for stratum in strata]
        return max(whole) if mix.epoch == "longest" else min(whole)
    samples = mix.epoch if isinstance(mix.epoch, int) else sum(len(stratum.members) for stratum in strata)
    return max(1, samples // batch_size)
