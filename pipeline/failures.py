"""Images that do not decode while a run goes on: each is named once, and replaced by another of its stratum.

Which one replaces it depends on the plan and on the images alone, so every rank, and every resumed run, takes the same.
"""

import logging

import numpy as np

from pipeline.order import Ids
from pipeline.plan import Plan, PlannedBatch
from pipeline.reader import ShardReader
from shardgen.errors import DataError
from shardgen.images import Unreadable, check

_log = logging.getLogger("facemix.loader")


def undecodable(reader: ShardReader, sample_ids: Ids) -> dict[int, str]:
    """Return those of some samples whose images do not decode, each with the reason.

    Raises `DataError` when that is because their shards changed since the data set was made.
    """
    reasons: dict[int, str] = {}
    for sample, image in zip(sample_ids.tolist(), reader.read(sample_ids), strict=True):
        try:
            check(image)
        except Unreadable as error:
            reasons[sample] = str(error)
    reader.verify(np.array([*reasons], np.int64))
    return reasons


class Failures:
    """What one rank met of them."""

    def __init__(self, plan: Plan, reader: ShardReader, most: int) -> None:
        """Put up with so many."""
        self._plan = plan
        self._reader = reader
        self._most = most
        self._known: set[int] = set()

    def __len__(self) -> int:
        return len(self._known)

    def look_for(self, sample_ids: Ids) -> bool:
        """Return whether any of these samples does not decode, and name those that were not known yet.

        Raises `DataError` when they are too many, or their shards have changed.
        """
        found = undecodable(self._reader, np.unique(sample_ids))
        for sample, reason in found.items():
            if sample not in self._known:
                self._note(sample, reason)
        return bool(found)

    def _note(self, sample: int, reason: str) -> None:
        self._known.add(sample)
        where = self._reader.describe(sample)
        if len(self._known) > self._most:
            raise DataError(
                f"{where}: {reason}; with it {len(self._known)} images failed, loader.max_failures is {self._most}: "
                "raise it, or convert the set again, which leaves them out"
            )
        _log.warning("%s: %s; another of its stratum replaces it (%d so far)", where, reason, len(self._known))

    def replace(self, planned: PlannedBatch) -> Ids:
        """Return the samples of a batch, with others in place of those known to fail."""
        if not self._known:
            return planned.sample_ids
        sample_ids = planned.sample_ids.copy()
        for slot in np.flatnonzero(np.isin(sample_ids, [*self._known])).tolist():
            sample_ids[slot] = self._other(int(planned.strata[slot]), int(sample_ids[slot]), int(planned.passes[slot]))
        return sample_ids

    def _other(self, stratum: int, sample: int, pass_number: int) -> int:
        for other in self._plan.replacements(stratum, sample, pass_number):
            if not self.look_for(np.array([other])):
                return other
        raise DataError(f"no image of {self._plan.strata[stratum].name} decodes; convert the set again")
