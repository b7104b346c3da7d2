"""The plan: global batch k as a pure function of (shard sets, mix, seed, batch size, k).

Quotas say how many units of each stratum a batch takes, its members which, and a permutation shuffles them
over the batch's slots, so that on average every rank's slice holds every stratum's share.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.catalog import Catalog, open_catalog
from pipeline.config import MixConfig, Shares
from pipeline.hashing import derive_key, mix64
from pipeline.mixing import Phase, Quotas
from pipeline.order import Ids, together
from pipeline.strata import Stratum, select
from shardgen.errors import UsageError


@dataclass(frozen=True)
class PlannedBatch:
    """What a batch holds, slot by slot: `[batch]` each."""

    sample_ids: Ids
    passes: Ids
    """How often the sample was met before: never the same twice for one sample."""
    strata: npt.NDArray[np.int16]
    """Positions in the plan's strata."""


class Plan:
    """A mix of a catalog's sets, cut into global batches."""

    def __init__(self, catalog: Catalog, mix: MixConfig, seed: int, batch_size: int) -> None:
        """Raise `UsageError` where the sets do not have what the mix asks for, or units do not fill a batch."""
        self.catalog, self.mix, self.seed, self.batch_size = catalog, mix, seed, batch_size
        self.unit = mix.per_identity
        """Slots that belong together: a rank's slice must not begin or end within."""
        if batch_size % self.unit:
            raise UsageError(
                f"batch size {batch_size} is no multiple of per_identity {self.unit}; "
                f"use {ceil(batch_size / self.unit) * self.unit}"
            )
        self.set_names = list(mix.sets)
        self.selections = {name: select(catalog, name, mix, seed) for name in mix.sets}
        """Set -> its strata, what it leaves out, and what its caps cannot do."""
        self.strata = [stratum for one in self.selections.values() for stratum in one.strata]
        self._label_of, self.num_identities = _number_identities(catalog, mix, self.strata)
        """Set -> identities that take part."""
        self.num_classes = _num_classes(mix, self._label_of, self.num_identities)
        """Of each head: one, or one a set when labels are separate."""
        self.batches_per_epoch = _batches_per_epoch(self.strata, mix, batch_size)
        self.shares = _shares_by_epoch(mix, self.strata)
        """(First epoch, share of each stratum from then on), from epoch 0 on."""
        self.state_key = _state_key(catalog, mix, self.strata, seed, batch_size)
        """What a saved position depends on, each by the name a person knows it by."""
        phases: list[Phase] = [(epoch * self.batches_per_epoch, shares) for epoch, shares in self.shares]
        self._quotas = Quotas(phases, batch_size // self.unit)
        self._keys = [derive_key(seed, "order", stratum.name) for stratum in self.strata]
        self._set_of = np.array([self.set_names.index(stratum.set_name) for stratum in self.strata])

    def counts_before(self, batch: int) -> tuple[int, ...]:
        """Return how many samples each stratum gives to the batches before this one."""
        return tuple(units * self.unit for units in self._quotas.before(batch))

    def batch(self, number: int) -> PlannedBatch:
        """Return global batch `number`, counted from 0 over all epochs."""
        starts, ends = self._quotas.before(number), self._quotas.before(number + 1)
        giving = [i for i in range(len(self.strata)) if starts[i] < ends[i]]
        met = together([self.strata[i].members.at(np.arange(starts[i], ends[i]), self._keys[i]) for i in giving])
        sample_ids, passes = (np.concatenate(column) for column in zip(*met, strict=True))
        strata = np.repeat(np.array(giving, np.int16), [len(ids) for ids, _ in met])
        slots = self._slots(number)
        return PlannedBatch(sample_ids[slots], passes[slots], strata[slots])

    def _slots(self, number: int) -> Ids:
        """Return which of the samples goes to each slot: units in any order, whole."""
        key = np.uint64(derive_key(self.seed, "slots", number))
        units = np.argsort(mix64(np.arange(self.batch_size // self.unit, dtype=np.uint64) ^ key))
        return (units[:, None] * self.unit + np.arange(self.unit)).ravel()

    def labels(self, sample_ids: Ids) -> Ids:
        """Return the classes of samples that take part, from 0 within their head."""
        return self._label_of[self.catalog.label[sample_ids]].astype(np.int64)

    def sets(self, strata: npt.NDArray[np.int16]) -> Ids:
        """Return the positions in `set_names` of the sets of strata."""
        return self._set_of[strata]

    def replacements(self, stratum: int, sample_id: int, pass_number: int) -> Iterator[int]:
        """Yield other samples of a stratum, the next best first, for one that cannot be used."""
        return self.strata[stratum].members.replacements(sample_id, pass_number, self._keys[stratum])


def open_plan(mix: MixConfig, seed: int, batch_size: int) -> Plan:
    """Open the sets of a mix and lay out its batches; raise `UsageError` or `DataError` when they are at fault."""
    folders = {name: one.path for name, one in mix.sets.items()}
    (often, times), *_ = Counter(path.resolve() for path in folders.values()).most_common(1)
    if times > 1:
        raise UsageError(f"{often} is in the mix under {times} names; each identity would get {times} labels, give one")
    return Plan(open_catalog(folders), mix, seed, batch_size)


def _number_identities(
    catalog: Catalog, mix: MixConfig, strata: Sequence[Stratum]
) -> tuple[npt.NDArray[np.int32], dict[str, int]]:
    """Return the class of each of the catalog's identities, -1 for one that takes no part, and each set's number."""
    label_of = np.full(len(catalog.identities), -1, np.int32)
    numbers: dict[str, int] = {}
    for name in mix.sets:
        of_set = [identities_of(catalog, stratum) for stratum in strata if stratum.set_name == name]
        taking_part = np.flatnonzero(np.logical_or.reduce(of_set))
        first = 0 if mix.labels == "separate" else sum(numbers.values())
        label_of[taking_part] = np.arange(first, first + len(taking_part))
        numbers[name] = len(taking_part)
    if mix.labels == "joined":
        _join(label_of, catalog)
    return label_of, numbers


def identities_of(catalog: Catalog, stratum: Stratum) -> npt.NDArray[np.bool_]:
    """Return which of the catalog's identities have a sample in a stratum."""
    ids = stratum.members.ids
    present = np.zeros(len(catalog.identities), np.bool_)
    if isinstance(ids, range):  # a whole set, whose labels are consecutive and have a sample each
        labels = catalog.label[ids.start : ids.stop]
        present[labels.min() : labels.max() + 1] = True
    else:
        present[catalog.label[ids]] = True
    return present


def _join(label_of: npt.NDArray[np.int32], catalog: Catalog) -> None:
    """Give identities of one name one class, numbered by where a name first occurs."""
    used = np.flatnonzero(label_of >= 0)
    used = used[np.argsort(label_of[used])]
    names = pa.array([name for _, name in catalog.identities]).take(used)
    label_of[used] = names.dictionary_encode().indices.to_numpy()


def _num_classes(mix: MixConfig, label_of: npt.NDArray[np.int32], num_identities: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(num_identities.values()) if mix.labels == "separate" else (int(label_of.max()) + 1,)


def _shares_by_epoch(mix: MixConfig, strata: Sequence[Stratum]) -> list[tuple[int, list[Fraction]]]:
    """Return each stratum's share of a batch, from each epoch on at which one changes."""
    sizes: Counter[str] = Counter()
    for stratum in strata:
        sizes[stratum.set_name] += len(stratum.members.ids)
    natural: Shares = {name: Fraction(size, sizes.total()) for name, size in sizes.items()}
    return [
        (epoch, [(shares or natural)[stratum.set_name] * stratum.part for stratum in strata])
        for epoch, shares in mix.phases()
    ]


def _batches_per_epoch(strata: Sequence[Stratum], mix: MixConfig, batch_size: int) -> int:
    """Return after how many whole batches an epoch ends, at least one."""
    if mix.epoch in ("longest", "shortest"):
        (_, shares), *_ = _shares_by_epoch(mix, strata)
        units = batch_size // mix.per_identity
        whole = [ceil(one.members.num_units / (share * units)) for one, share in zip(strata, shares, strict=True)]
        return max(whole) if mix.epoch == "longest" else min(whole)
    samples = mix.epoch if isinstance(mix.epoch, int) else sum(len(one.members.ids) for one in strata)
    return max(1, samples // batch_size)


def _state_key(
    catalog: Catalog, mix: MixConfig, strata: Sequence[Stratum], seed: int, batch_size: int
) -> dict[str, Any]:
    fields = mix.model_dump_json(exclude={"sets": {"__all__": {"path", "augment"}}})
    return {
        "data set": catalog.digest,
        "mix": json.loads(fields),
        "order of strata": [stratum.name for stratum in strata],
        "seed": seed,
        "batch size": batch_size,
    }
