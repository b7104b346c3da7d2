"""How many samples of each stratum the first k batches hold: exact quotas, as arithmetic.

This is the chairman assignment problem (Tijdeman, 1980), whose shares may change over time, at batch
boundaries. A stratum is due the sum of its shares so far. Its j-th sample may not come before the batch
in which the due count exceeds j, and must have come by the one in which it reaches j + 1. Filling each
batch with the earliest deadlines first is optimal for unit jobs, and Tijdeman's theorem says that a solution
exists; so at every batch boundary every count is within one sample of its share, and none ever falls.

Where every stratum gets at least one sample in a batch, what came before that batch does not matter: each
count is what is due, rounded down, and the earliest deadlines are rounded up. So almost any batch costs the same.
"""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from math import gcd, inf, lcm

Counts = tuple[int, ...]
Phase = tuple[int, Sequence[Fraction]]
"""First batch -> each stratum's share from then on."""


class Quotas:
    """Counts per stratum before batch k; the shares of each phase add up to 1, the first begins at batch 0."""

    def __init__(self, phases: Sequence[Phase], slots: int) -> None:
        """Lay out batches of so many slots."""
        assert phases[0][0] == 0
        assert all(sum(shares) == 1 for _, shares in phases)
        self._slots = slots
        self._one = lcm(*(share.denominator for _, shares in phases for share in shares))
        self._firsts = [first for first, _ in phases]
        self._rates = [[int(share * self._one) * slots for share in shares] for _, shares in phases]
        self._due = self._due_at_firsts()
        self._last: tuple[int, Counts] = (0, (0,) * len(phases[0][1]))

    def _due_at_firsts(self) -> list[list[int]]:
        """Return what is due when each phase begins. Like rates, in parts of a sample: `_one` is a whole one."""
        due = [[0] * len(self._rates[0])]
        for first, following, rates in zip(self._firsts, self._firsts[1:], self._rates, strict=False):
            due.append([before + (following - first) * rate for before, rate in zip(due[-1], rates, strict=True)])
        return due

    def before(self, batch: int) -> Counts:
        """Return how many samples of each stratum batches 0..batch-1 hold.

        A pure function; the last answer is kept, so going on from it costs one step. Other answers are
        counted from the latest boundary that needs no history: the batch itself where every stratum gets at least
        one sample in each, else one at which the counts are exactly due, else the beginning of the phase.
        So where a stratum is rarer than one a batch and shares have large denominators, a far answer takes 10 us for
        each batch before it.
        """
        known, counts = self._last
        anchor = self._anchor(batch)
        if not anchor <= known <= batch:
            known, counts = anchor, self._advance((0,) * len(counts), anchor)
        for step in range(known, batch):
            counts = self._advance(counts, step + 1)
        self._last = (batch, counts)
        return counts

    def _anchor(self, batch: int) -> int:
        """Return the latest boundary, up to this one, at which the counts follow from what is due."""
        while batch:
            phase = self._phase(batch - 1)
            first, rates = self._firsts[phase], self._rates[phase]
            if min(rates) >= self._one:
                return batch
            if not any(due % self._one for due in self._due[phase]):
                period = self._one // gcd(self._one, *rates)
                return batch - (batch - first) % period
            batch = first
        return 0

    def _phase(self, batch: int) -> int:
        return bisect_right(self._firsts, batch) - 1

    def _advance(self, counts: Counts, batch: int) -> Counts:
        """Return the counts at a boundary, given those at the one before or, at an anchor, anything lower."""
        phase = self._phase(batch)
        elapsed = batch - self._firsts[phase]
        due = [
            divmod(start + elapsed * rate, self._one)
            for start, rate in zip(self._due[phase], self._rates[phase], strict=True)
        ]
        now = [max(count, whole) for count, (whole, _) in zip(counts, due, strict=True)]
        allowed = [i for i, (whole, part) in enumerate(due) if now[i] < whole + (part > 0)]
        open_slots = batch * self._slots - sum(now)
        for i in sorted(allowed, key=lambda i: self._deadline(i, now[i] + 1, phase))[:open_slots]:
            now[i] += 1
        return tuple(now)

    def _deadline(self, stratum: int, count: int, phase: int) -> float:
        """Return the boundary by which a stratum must have so many samples, looked for from a phase on."""
        for later in range(phase, len(self._firsts)):
            rate = self._rates[later][stratum]
            if rate:
                at = self._firsts[later] - (self._due[later][stratum] - count * self._one) // rate
                if later + 1 == len(self._firsts) or at <= self._firsts[later + 1]:
                    return at
        return inf
