"""What a loader cost: values that add, so that steps, workers and ranks can be summed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Throughput:
    """Images that went through, and where the time went; all in seconds of wall clock."""

    images: int = 0
    seconds: float = 0.0
    waiting_seconds: float = 0.0
    """Part of `seconds` in which the consumer had nothing to work on."""

    def __add__(self, other: "Throughput") -> "Throughput":
        return Throughput(
            self.images + other.images,
            self.seconds + other.seconds,
            self.waiting_seconds + other.waiting_seconds,
        )

    @property
    def images_per_second(self) -> float:
        """Images per second of wall clock."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def waiting_share(self) -> float:
        """Share of the time spent waiting for data, 0 to 1."""
        return self.waiting_seconds / self.seconds if self.seconds else 0.0
