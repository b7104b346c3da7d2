"""How many samples of each stratum the first k batches hold: exact quotas, as arithmetic.

This is the chairman assignment problem (Tijdeman, 1980) at batch boundaries. Stratum i is due
`share_i * slots` samples after so many slots. Its j-th sample may not come before the batch in which the
due count exceeds j, and must have come by the one in which it reaches j + 1. Filling each batch with
the earliest deadlines first is optimal for unit jobs, and Tijdeman's theorem says that a solution
exists; so at every batch boundary every count is within one sample of its share, and none ever falls.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

Counts = tuple[int, ...]


class Quotas:
    """Counts per stratum before batch k, for shares that add up to 1."""

    def __init__(self, shares: Sequence[Fraction], batch_size: int) -> None:
        assert sum(shares) == 1
        self._batch_size = batch_size
        self._total = lcm(*(share.denominator for share in shares))
        self._weights = [int(share * self._total) for share in shares]
        self._period = self._total // gcd(batch_size, self._total)
        self._last: tuple[int, Counts] = (0, (0,) * len(shares))

    def before(self, batch: int) -> Counts:
        """Return how many samples of each stratum batches 0..batch-1 hold.

        A pure function; the last answer is kept, so going on from it costs one step. Every `period`
        batches the counts are exactly due, so no answer needs more steps than that; with natural shares of
        millions of samples the period is long, and a far first answer takes 2 us a batch.
        """
        known, counts = self._last
        anchor = batch - batch % self._period
        if not anchor <= known <= batch:
            slots = anchor * self._batch_size
            known, counts = anchor, tuple(weight * slots // self._total for weight in self._weights)
        for step in range(known, batch):
            counts = self._advance(counts, step + 1)
        self._last = (batch, counts)
        return counts

    def _advance(self, counts: Counts, batch: int) -> Counts:
        """Return the counts after one more batch, `batch` being how many there are then."""
        slots = batch * self._batch_size
        due = [divmod(weight * slots, self._total) for weight in self._weights]
        now = [max(count, whole) for count, (whole, _) in zip(counts, due, strict=True)]
        open_slots = slots - sum(now)
        allowed = [
            (-(-(now[i] + 1) * self._total // (weight * self._batch_size)), i)
            for i, weight in enumerate(self._weights)
            if now[i] < due[i][0] + (due[i][1] > 0)
        ]
        for _, i in sorted(allowed)[:open_slots]:
            now[i] += 1
        return tuple(now)
