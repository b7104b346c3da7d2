"""What a loader cost: values that add, so that steps, workers and ranks can be summed."""

import operator
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Literal, TypeVar, get_args

Stage = Literal["plan", "read", "decode", "augment", "deliver"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Idle = Literal["idle"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Throughput:
    """Images that went through, and where the time went; all in seconds of wall clock."""

    images: int = 0
    seconds: float = 0.0
    waiting_seconds: float = 0.0
    """Part of `seconds` in which the consumer had nothing to work on."""
    cached: int = 0
    """Images of all that came out of the decoded cache."""
    failures: int = 0
    """Images that did not decode, each counted once."""
    plan_seconds: float = 0.0
    """Deciding on samples and their augmentation; this and the following are of the thread that makes batches."""
    read_seconds: float = 0.0
    """Finding the samples' bytes in the shards, and asking for those of later batches."""
    decode_seconds: float = 0.0
    """Waiting for the decoder, which has threads of its own."""
    augment_seconds: float = 0.0
    """Augmenting, and exchanging images with the decoded cache."""
    deliver_seconds: float = 0.0
    """Making tensors of it all on the device."""

    def __add__(self, other: "Throughput") -> "Throughput":
        """Return the sum of every value."""
        return Throughput(*map(operator.add, astuple(self), astuple(other)))

    def __sub__(self, earlier: "Throughput") -> "Throughput":
        """Return what came after an earlier snapshot of the same counts."""
        return Throughput(*map(operator.sub, astuple(self), astuple(earlier)))

    @property
    def images_per_second(self) -> float:
        """Images per second of wall clock."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def waiting_share(self) -> float:
        """Share of the time spent waiting for data, 0 to 1."""
        return self.waiting_seconds / self.seconds if self.seconds else 0.0

    @property
    def occupancy(self) -> Mapping[Stage, float]:
        """Stage -> share of the time in which batches were in it, 0 to 1; near 1 in all, the loader is what limits."""
        seconds: dict[Stage, float] = {stage: getattr(self, f"{stage}_seconds") for stage in STAGES}
        return {stage: spent / self.seconds if self.seconds else 0.0 for stage, spent in seconds.items()}


class StageClock:
    """Where one thread's time goes: at any moment it is in exactly one stage, or idle."""

    def __init__(self) -> None:
        """Begin idle."""
        self._seconds: dict[Stage | Idle, float] = dict.fromkeys((*STAGES, "idle"), 0.0)
        self._now: Stage | Idle = "idle"
        self._since = time.perf_counter()

    @contextmanager
    def during(self, stage: Stage | Idle) -> Iterator[None]:
        """Count the time to this stage instead of the one around it."""
        outer = self._switch(stage)
        try:
            yield
        finally:
            self._switch(outer)

    def counting(self, stage: Stage, items: Iterator[Item]) -> Iterator[Item]:
        """Yield the items, counting the time that each takes to come."""
        while True:
            with self.during(stage):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def _switch(self, stage: Stage | Idle) -> Stage | Idle:
        now = time.perf_counter()
        self._seconds[self._now] += now - self._since
        before, self._now, self._since = self._now, stage, now
        return before

    def seconds(self) -> Mapping[str, float]:
        """Return the seconds of each stage's past visits, as fields of `Throughput`."""
        return {f"{stage}_seconds": self._seconds[stage] for stage in STAGES}
