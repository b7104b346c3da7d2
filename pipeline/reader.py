"""Sample ids -> encoded bytes, through memory maps: nothing is copied before the decoder reads it."""

import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.catalog import Catalog

Encoded = npt.NDArray[np.uint8]


class ShardReader:
    """Maps each shard when it is first needed."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._maps: dict[int, Encoded] = {}

    def read(self, sample_ids: npt.NDArray[np.int64]) -> list[Encoded]:
        """Return each sample's image file as a view of its shard."""
        catalog = self._catalog
        rows = zip(
            catalog.shard[sample_ids].tolist(),
            catalog.offset[sample_ids].tolist(),
            catalog.size[sample_ids].tolist(),
            strict=True,
        )
        return [self._shard(shard)[offset : offset + size] for shard, offset, size in rows]

    def _shard(self, number: int) -> Encoded:
        if number not in self._maps:
            self._maps[number] = _map(self._catalog.shard_paths[number])
        return self._maps[number]


def _map(path: Path) -> Encoded:
    with path.open("rb") as stream:
        return np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
