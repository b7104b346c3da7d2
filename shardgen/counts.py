"""What the tables of a set add up to, a shard at a time."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from shardgen.manifest import OrderStatistics


class Counted:
    """Adds up shards in their order; memory grows with identities, not with samples."""

    def __init__(self, num_identities: int, axes: Mapping[str, Sequence[str]]) -> None:
        self._axes = axes
        self._tags = {axis: np.zeros(len(values), np.int64) for axis, values in axes.items()}
        self._samples = np.zeros(num_identities, np.int64)
        self._identities_of_shards: list[int] = []
        self._adjacent = 0
        self._last = -1

    def add(self, table: pa.Table) -> None:
        """Count one shard's columns `identity` and tag axes; raise `IndexError` for a code without a value."""
        identities = table["identity"].to_numpy()
        np.add.at(self._samples, identities, 1)
        for axis, total in self._tags.items():
            np.add.at(total, table[axis].to_numpy(), 1)
        before = np.concatenate([[self._last], identities[:-1]])
        self._adjacent += int((before == identities).sum())
        self._last = int(identities[-1])
        self._identities_of_shards.append(len(np.unique(identities)))

    def counts(self) -> dict[str, dict[str, int]]:
        """Return axis -> value -> samples."""
        return {axis: dict(zip(self._axes[axis], total.tolist(), strict=True)) for axis, total in self._tags.items()}

    def num_samples(self) -> int:
        """Return the number of samples."""
        return int(self._samples.sum())

    def num_identities(self) -> int:
        """Return the number of identities with at least one sample."""
        return int((self._samples > 0).sum())

    def order(self) -> OrderStatistics:
        """Return how well identities are spread over the samples counted."""
        total = self.num_samples()
        pairs = max(total * (total - 1), 1)
        return OrderStatistics(
            adjacent_same_identity=self._adjacent / max(total - 1, 1),
            expected_if_random=int((self._samples * (self._samples - 1)).sum()) / pairs,
            identities_per_shard=float(np.mean(self._identities_of_shards)),
        )
